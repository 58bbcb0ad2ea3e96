-- model x kind x item: the latents of what a model should have embedded now; one of a changed or withdrawn item is not
select latents.*
from current_latents as latents
semi join current_wanted as wanted
    on wanted.stage = 'embed' and wanted.variant = latents.model_id
    and wanted.item = latents.kind || ':' || latents.item and wanted.fingerprint = latents.fingerprint
