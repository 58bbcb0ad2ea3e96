-- one row a model, the newest first; a parameter that is null fits every model
select model_id, kind, coalesce(source, ''), coalesce(revision, ''), coalesce(source_sha256, ''), path
from current_models
where
    ($model_id is null or model_id = $model_id)
    and ($source is null or source = $source)
    and ($kind is null or kind = $kind)
    and ($revision is null or revision = $revision)
order by run_id desc
