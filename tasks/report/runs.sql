-- run that scored a split
select distinct runs.run_id, runs.flow_run_id
from current_metrics
join runs using (run_id)
where model_id = $model_id and dataset = $dataset and split = $split and status = 'running'
