-- one run: the stage's latest call, or, for a stage that never ran, another stage's latest call, with a preset if any
select stage, parameters
from runs
where length(parameters) > 2
order by stage = $stage desc, parameters ->> '$.preset' is not null desc, run_id desc
limit 1
