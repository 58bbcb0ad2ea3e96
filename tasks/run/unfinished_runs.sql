-- run of stage $stage without an end
select run_id, variant, host, code_version
from runs
where stage = $stage
group by all
having bool_and(status = 'running')
