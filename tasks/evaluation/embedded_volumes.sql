-- volume that has a latent of the given model, or of any model
select distinct item
from wanted_latents
where kind = 'volume' and ($model_id is null or model_id = $model_id)
order by item
