-- data set x split on which a model and one other have paired differences
select distinct dataset, split
from model_comparisons
where model_id = $model_id and other_model_id = $other_model_id and unit = 'scan' and metric = 'auroc'
    and label_source = $label_source and abnormality = 'macro' and difference is not null
