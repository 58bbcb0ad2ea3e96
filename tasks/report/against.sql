-- abnormality or macro: difference in AUROC between a model and one other, of a data set and split
select abnormality, other_protocol, difference, ci_low, ci_high, ci_method, p_value, p_value_holm, count_patients
from model_comparisons
where model_id = $model_id and other_model_id = $other_model_id and dataset = $dataset and split = $split
    and unit = 'scan' and metric = 'auroc' and label_source = $label_source and abnormality <> 'micro'
    and difference is not null
order by difference desc, abnormality
