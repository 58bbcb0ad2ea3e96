-- AUROC on the split valid of an abnormality x protocol, by the newest model of each protocol
with newest as (
    select protocol, max_by(model_id, run_id) as model_id
    from current_metrics
    where split = 'valid' and label_source = 'published'
    group by protocol
)
select abnormality, protocol, value as auroc, n_positive, n
from current_metrics
join newest using (protocol, model_id)
where split = 'valid' and label_source = 'published' and unit = 'scan' and metric = 'auroc' and list_contains($abnormalities, abnormality)
order by abnormality
