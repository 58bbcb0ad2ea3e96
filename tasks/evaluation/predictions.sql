-- item (scan or volume) that a model has predicted, with its probabilities in the order of $names
with items as (
    select volume_name as item, scan_id, patient_id from current_volumes where $unit = 'volume'
    union
    select scan_id, scan_id, patient_id from current_volumes where $unit = 'scan'
)
select item, scan_id, patient_id, list(probability order by list_position($names, abnormality))
from current_predictions
join items using (item)
where model_id = $model_id and protocol = $protocol and dataset = $dataset and split = $split and unit = $unit
    and label_set = $label_set
group by item, scan_id, patient_id
order by item
