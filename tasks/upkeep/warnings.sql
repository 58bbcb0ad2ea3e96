-- model whose training did not beat its baselines: a sentence for a person
select concat_ws(' ', model_id, warning)
-- read through JSON, since a warehouse of an older version lacks the column until its next publish
from (select model_id, run_id, to_json(models) ->> '$.warning' as warning from current_models as models)
where warning is not null
order by run_id
