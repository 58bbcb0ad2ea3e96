-- the $count volumes of other scans whose latents by $model_id are most similar to that of $volume_name
with latents as (select * from wanted_latents where model_id = $model_id and kind = 'volume'),
query as (select latent from latents where item = $volume_name)
select
    latents.item as volume_name, volumes.scan_id, volumes.patient_id, volumes.split,
    list_cosine_similarity(latents.latent, query.latent) as similarity
from latents
cross join query
join current_volumes as volumes on volumes.volume_name = latents.item
where volumes.scan_id <> (select scan_id from current_volumes where volume_name = $volume_name)
order by similarity desc, volume_name
limit cast($count as bigint)
