-- one row: a hash of a model's latents of reports and of the prompts in $prompts
select coalesce(md5(string_agg(item || fingerprint, ',' order by kind, item)), '')
from wanted_latents
where model_id = $model_id and (kind = 'report' or (kind = 'prompt' and list_contains($prompts, item)))
