-- data set x split x unit x other model, made before the given model and scored alike, each by its own protocol
with scored as (
    select distinct model_id, dataset, split, unit, protocol, metrics.fingerprint, models.run_id as made_by
    from current_metrics as metrics
    join current_models as models using (model_id)
    where not list_contains($named, protocol) and label_source = 'published'
)
select
    dataset, split, unit, mine.protocol, others.model_id, others.protocol, mine.fingerprint, others.fingerprint
from scored as mine
join scored as others using (dataset, split, unit)
where mine.model_id = $model_id and (others.made_by, others.model_id) < (mine.made_by, mine.model_id)
order by all
