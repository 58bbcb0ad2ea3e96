-- named protocol that a run of evaluate has asked for, for a model and the published labels
select distinct split_part(item, '/', 3) as protocol
from current_wanted
where stage = 'evaluate' and variant = $model_id and not contains(item, ' ') and list_contains($known, split_part(item, '/', 3))
order by protocol
