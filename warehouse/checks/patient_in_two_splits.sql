-- patient with volumes of more than one split
select patient_id, list(distinct split order by split) as splits, count(*) as count_volumes
from current_volumes
semi join changed_volumes using (patient_id)
where patient_id is not null
group by patient_id
having count(distinct split) > 1
