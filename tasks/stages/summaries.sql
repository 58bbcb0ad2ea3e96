-- a completed run of a flow run, as StageRun.summary gives it
select
    stage, coalesce(variant, '') as variant, run_id, count_done as done, count_rejected as rejected, detail,
    round(duration_s, 2) as duration_s
from runs
where flow_run_id = ? and status = 'completed'
order by run_id
