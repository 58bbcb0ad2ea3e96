-- run: the twelve latest with their time and items. The first row of a run says when it started
select
    stage, coalesce(arg_max(variant, recorded_at), '') as variant,
    arg_max(status, (status <> 'running')::integer) as last_status, min(recorded_at) as started_at,
    max(duration_s) filter (status <> 'running') as duration_s,
    max(count_done) filter (status <> 'running') as count_done,
    max(count_rejected) filter (status <> 'running') as count_rejected
from runs
group by run_id, stage
order by run_id desc
limit 12
