-- stale model: a sentence for a person
select format('{} is stale: {} of its {} samples moved; `{} --retrain` trains anew',
    stage_status.model_id, stale_models.count_moved_samples, stale_models.count_samples, stage)
from stage_status
join stale_models using (model_id)
where stale_models.is_stale and stage = coalesce($stage, stage) and variant = coalesce($variant, variant)
