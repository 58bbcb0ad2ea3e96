-- one row a current model with a folder
select path, weights_sha256, kind, preset, parent_model_id, if(source_sha256 is null, null, source)
from current_models
where path is not null
order by path
