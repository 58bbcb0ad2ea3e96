-- one row a scan of the train split with a published label for each abnormality; labels in the order of $1
select scan_id, findings, impression, list(value order by list_position($1, abnormality))
from current_reports
join current_published_labels using (scan_id)
where current_reports.split = 'train' and list_contains($1, abnormality)
group by all
having count(*) = $2
order by scan_id
