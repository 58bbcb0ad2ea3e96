-- report that mentions $term in findings or impression although its published label $abnormality is 0
select scan_id, findings, impression
from current_reports as reports
join current_published_labels as labels using (scan_id)
where
    labels.abnormality = $abnormality and labels.value = 0
    and contains(lower(concat_ws(' ', findings, impression)), lower($term))
order by scan_id
