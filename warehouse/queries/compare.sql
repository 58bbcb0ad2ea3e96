-- how much more AUROC $model_id has than each other model on $dataset, $split, macro first: with interval, p and Holm's p
select
    other_model_id, other_protocol, abnormality, difference, ci_low, ci_high, p_value, p_value_holm, count_patients, n
from model_comparisons
where model_id = $model_id and dataset = $dataset and split = $split and unit = 'scan' and metric = 'auroc'
order by other_model_id, other_protocol, abnormality <> 'macro', abnormality
