-- model x volume with a current latent. The data set is the kind of the volume's source
select
    latents.model_id, sources.kind as dataset, volumes.split, volumes.volume_name, volumes.scan_id, volumes.patient_id,
    latents.fingerprint, latents.latent, exclusions.volume_name is not null as is_excluded
from wanted_latents as latents
join current_volumes as volumes on latents.kind = 'volume' and volumes.volume_name = latents.item
join current_sources as sources on sources.source = volumes.source
left join (select distinct volume_name from current_exclusions) as exclusions
    on exclusions.volume_name = volumes.volume_name
