-- scan with a report: the latents of its first reconstruction and of the report, as retrieval is scored
select
    volumes.scan_id, min(volumes.volume_name) as volume_name, arg_min(volumes.latent, volumes.volume_name) as image,
    any_value(reports.latent) as text
from evaluation_samples as volumes
join wanted_latents as reports
    on reports.kind = 'report' and reports.model_id = volumes.model_id and reports.item = volumes.scan_id
where volumes.model_id = $model_id and dataset = $dataset and split = $split
group by volumes.scan_id
order by volumes.scan_id
