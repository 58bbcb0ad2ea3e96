-- model x other model x data set x split x both protocols x unit x label source x abnormality x metric: difference of the two models, in both directions. Pairs with a newer evaluation are left out
with fresh as (
    select comparisons.*
    from current_comparisons as comparisons
    semi join current_metrics as mine
        on mine.model_id = comparisons.model_id and mine.protocol = comparisons.protocol
        and mine.dataset = comparisons.dataset and mine.split = comparisons.split and mine.unit = comparisons.unit
        and mine.fingerprint = comparisons.scored_as
    semi join current_metrics as theirs
        on theirs.model_id = comparisons.other_model_id and theirs.protocol = comparisons.other_protocol
        and theirs.dataset = comparisons.dataset and theirs.split = comparisons.split and theirs.unit = comparisons.unit
        and theirs.fingerprint = comparisons.other_scored_as
)
select
    model_id, protocol, other_model_id, other_protocol, dataset, split, unit, label_source, abnormality, metric,
    difference, ci_low, ci_high, coalesce(ci_method, if(ci_low is null, null, 'percentile')) as ci_method,
    has_few_patients, bca_low, bca_high, p_value, p_value_holm, n, count_patients, fingerprint
from fresh
union all
select
    other_model_id, other_protocol, model_id, protocol, dataset, split, unit, label_source, abnormality, metric,
    -difference, -ci_high, -ci_low, coalesce(ci_method, if(ci_low is null, null, 'percentile')) as ci_method,
    has_few_patients, -bca_high, -bca_low, p_value, p_value_holm, n, count_patients, fingerprint
from fresh
