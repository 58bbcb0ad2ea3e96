-- abnormality of one scored evaluation: its threshold and the threshold's source
select abnormality, any_value(threshold), any_value(threshold_source)
from current_metrics
where model_id = $model_id and protocol = $protocol and dataset = $dataset and split = $split and unit = $unit
    and label_source = $label_source and threshold_source is not null
group by abnormality
