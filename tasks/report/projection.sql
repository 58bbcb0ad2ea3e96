-- point of the projection with its scan's number of labels
with labels as (select scan_id, sum(value) as count_labels from current_published_labels group by scan_id)
select x, y, coalesce(count_labels, 0)
from current_projections as projections
left join current_volumes as volumes on volumes.volume_name = projections.item
left join labels on labels.scan_id = coalesce(volumes.scan_id, projections.item)
where model_id = $model_id and dataset = $dataset and projections.split = $split
order by item
