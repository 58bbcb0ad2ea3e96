-- abnormality whose metrics disagree on their counts, or count more items than were predicted
-- Metrics of decisions may count fewer items, since patients that the threshold was chosen on are left out.
with touched as (
    select model_id from changed_metrics
    union
    select model_id from changed_predictions
),
counted as (
    select
        model_id, dataset, split, protocol, unit, label_source, label_set, abnormality, threshold_source,
        min(n) as n_least, max(n) as n_most, count(distinct n_positive) as count_n_positive
    from current_metrics as metrics
    semi join touched on metrics.model_id is not distinct from touched.model_id
    where abnormality not in ('macro', 'micro')
    group by model_id, dataset, split, protocol, unit, label_source, label_set, abnormality, threshold_source
),
predicted as (
    select model_id, dataset, split, protocol, unit, label_set, abnormality, count(*) as n_predicted
    from current_predictions as predictions
    semi join touched on predictions.model_id is not distinct from touched.model_id
    group by all
)
select counted.*, n_predicted
from counted
left join predicted using (model_id, dataset, split, protocol, unit, label_set, abnormality)
where n_least < n_most or count_n_positive > 1 or n_most > n_predicted
