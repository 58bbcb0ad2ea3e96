-- one row: the model of $id, or else the newest CT-CLIP of $preset, trained here before imported
select
    models.model_id, models.kind, models.preset, models.path, models.recipe_id, models.logit_scale, models.fingerprint,
    models.weights_sha256,
    -- a LiPro without a parent in the warehouse, or with a parent that was trained again, reads its own latents
    if(models.kind in (select unnest($with_head)), coalesce(parents.model_id, models.model_id), models.model_id) as encoder_id
from current_models as models
left join current_models as parents
    on parents.model_id = models.parent_model_id
    and parents.weights_sha256 = models.config ->> '$.parent_weights_sha256'
where
    case
        when $id is null then models.kind = 'ct-clip' and models.preset = $preset
        else models.kind in (select unnest($encoders)) and models.model_id = $id
    end
order by models.source_sha256 is not null, models.run_id desc
limit 1
