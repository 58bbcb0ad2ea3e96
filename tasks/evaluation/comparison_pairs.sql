-- data set x split x unit x source of labels x other model, made before the given model and scored alike, each by its own protocol
with scored as (
    select
        model_id, dataset, split, unit, label_source,
        coalesce(to_json(metrics) ->> '$.label_set', 'ct-rate-18') as label_set, -- an older file lacks the column
        protocol, metrics.fingerprint, models.run_id as made_by,
        list(distinct abnormality order by abnormality) filter (abnormality not in ('macro', 'micro')) as names
    from current_metrics as metrics
    join current_models as models using (model_id)
    where not list_contains($named, protocol) and label_source <> 'hand'
    group by all
)
select
    dataset, split, unit, mine.protocol, others.model_id, others.protocol, mine.fingerprint, others.fingerprint,
    label_source, label_set, names
from scored as mine
join scored as others using (dataset, split, unit, label_source, label_set, names)
where mine.model_id = $model_id and (others.made_by, others.model_id) < (mine.made_by, mine.model_id)
order by all
