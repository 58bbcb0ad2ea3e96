-- abnormality x one of ten stretches of probability: mean prediction, and share of scans with the label
select predictions.abnormality, avg(probability) as predicted, avg(value) as observed
from current_predictions as predictions
join (select scan_id, abnormality, value from all_labels where labeller_id = $label_source) as labels
    on labels.scan_id = predictions.item and labels.abnormality = predictions.abnormality
where model_id = $model_id and dataset = $dataset and predictions.split = $split and protocol not in (select protocol from named_protocols)
    and unit = 'scan' and value is not null and label_set = $label_set
group by predictions.abnormality, least(floor(probability * 10), 9)
order by predictions.abnormality, predicted
