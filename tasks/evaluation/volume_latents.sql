-- model x selected volume
select item as volume_name, model_id, latent
from wanted_latents
where kind = 'volume' and ($model_id is null or model_id = $model_id) and item in (select unnest($names))
order by model_id, item
