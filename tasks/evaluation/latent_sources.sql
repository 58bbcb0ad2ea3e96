-- source of volumes with latents of $model_id: its latest revision
select sources.source, arg_max(sources.revision, sources.run_id) as revision
from current_sources as sources
where sources.source in (
    select volumes.source
    from current_volumes as volumes
    join wanted_latents on wanted_latents.item = volumes.volume_name
    where wanted_latents.kind = 'volume' and wanted_latents.model_id = $model_id
)
group by sources.source
order by sources.source
