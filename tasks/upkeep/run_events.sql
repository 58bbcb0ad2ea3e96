-- run x status: the events of the runs whose id begins with $run, or of the latest run of the stage $run
select run_id, status, stage, variant, host, parameters, code_version, recorded_at, duration_s, count_done, count_rejected, detail
from runs
where starts_with(run_id, $run) or run_id = (select max(run_id) from runs where stage = $run)
order by run_id, recorded_at
