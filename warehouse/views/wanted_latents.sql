-- model x kind x item: latent with the wanted fingerprint. Latents of changed or withdrawn items are left out
select latents.*
from current_latents as latents
semi join current_wanted as wanted
    on wanted.stage = 'embed' and wanted.variant = latents.model_id
    and wanted.item = latents.kind || ':' || latents.item and wanted.fingerprint = latents.fingerprint
