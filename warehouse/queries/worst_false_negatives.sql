-- the $count scans to which $model_id gives the lowest probability of an abnormality that the published labels affirm
select
    predictions.dataset, predictions.split, predictions.protocol, item as scan_id,
    predictions.abnormality, probability,
    reports.findings, reports.impression
from current_predictions as predictions
join current_published_labels as labels
    on labels.scan_id = predictions.item and labels.abnormality = predictions.abnormality
left join current_reports as reports on reports.scan_id = predictions.item
where model_id = $model_id and unit = 'scan' and labels.value = 1
    and protocol not in ('scans-1551', 'scans-1564') -- an older file lacks named_protocols
    -- read through JSON, since a warehouse of an older version lacks the column until its next publish
    and coalesce(to_json(predictions) ->> '$.label_set', 'ct-rate-18') = 'ct-rate-18'
order by probability
limit cast($count as bigint)
