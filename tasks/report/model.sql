-- one model: its origin and training
select model_id, kind, parent_model_id, preset, recipe_id, source, revision, manifest_fingerprint, count_samples,
    count_parameters, code_version, weights_sha256, created_at, round(duration_s, 1) as training_s
from current_models
where model_id = $model_id
