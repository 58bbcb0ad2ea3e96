-- one model: the newest of a preset and its named labels that was trained here, or of a parent and a kind of fine-tuning
select config
from current_models
where case
    when $stage = 'train'
    then kind = 'ct-clip' and source_sha256 is null and preset || coalesce(' by ' || (config ->> '$.labels_of'), '') = $variant
    else concat(parent_model_id, '/', kind) = $variant
end
order by run_id desc
limit 1
