-- one row a model that is an encoder of another package
select model_id, config ->> '$.encoder', config ->> '$.package'
from current_models
where kind = 'external'
order by run_id, model_id
