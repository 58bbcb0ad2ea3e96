-- other model x abnormality: AUROC of $model_id minus the other model's on $dataset, $split, with interval, p and Holm's p
select
    label_source, other_model_id, other_protocol, abnormality, difference,
    columns('^(ci_low|ci_high|ci_method|has_few_patients)$'), -- a file that no publish has renewed lacks two
    p_value, p_value_holm, count_patients, n
from model_comparisons
where model_id = $model_id and dataset = $dataset and split = $split and unit = 'scan' and metric = 'auroc'
order by label_source <> 'published', label_source, other_model_id, other_protocol, abnormality <> 'macro', abnormality
