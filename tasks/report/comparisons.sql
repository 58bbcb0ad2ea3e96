-- other model: difference in macro AUROC, and the count of abnormalities that differ
select
    other_model_id, other_protocol, max(difference) filter (abnormality = 'macro') as difference,
    max(ci_low) filter (abnormality = 'macro') as ci_low, max(ci_high) filter (abnormality = 'macro') as ci_high,
    max(ci_method) filter (abnormality = 'macro') as ci_method, max(p_value) filter (abnormality = 'macro') as p_value,
    count(*) filter (p_value_holm < 0.05 and difference > 0) as count_better,
    count(*) filter (p_value_holm < 0.05 and difference < 0) as count_worse, max(count_patients) as count_patients
from model_comparisons
where model_id = $model_id and dataset = $dataset and split = $split and unit = 'scan' and metric = 'auroc'
    and label_source = $label_source
group by other_model_id, other_protocol
order by difference
