-- scan x abnormality: probability and published label, with the groups of the scan's patient
with groups as (
    select
        scan_id, any_value(patient_id) as patient_id, any_value(patient_sex) as sex,
        any_value(manufacturer) as manufacturer, any_value(patient_age_years) as age
    from current_volumes
    group by scan_id
)
select
    item, patient_id, predictions.abnormality, probability, value, sex, manufacturer,
    case when age < 40 then '0 to 39' when age < 60 then '40 to 59' when age < 75 then '60 to 74'
        when age is not null then '75 and over' end as age
from current_predictions as predictions
join (select scan_id, abnormality, value from all_labels where labeller_id = $label_source) as labels
    on labels.scan_id = predictions.item and labels.abnormality = predictions.abnormality
join groups on groups.scan_id = predictions.item
where model_id = $model_id and dataset = $dataset and predictions.split = $split and protocol not in (select protocol from named_protocols)
    and unit = 'scan' and value is not null and label_set = $label_set
order by item, predictions.abnormality
