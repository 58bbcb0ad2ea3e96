-- one row: the newest stale model of a configuration's fingerprint
select model_id, count_moved_samples, stale_models.count_samples
from stale_models
join current_models using (model_id)
where fingerprint = ? and is_stale
order by run_id desc
limit 1
