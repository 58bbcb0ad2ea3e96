-- scan with a latent of $model_id: the sections of its current report
select scan_id, findings, impression, clinical_information, technique
from current_reports
where scan_id in (
    select regexp_replace(item, '_[0-9]+$', '') from wanted_latents where kind = 'volume' and model_id = $model_id
)
order by scan_id
