-- pending item x fingerprint that was ever declared with its parts
select item, fingerprint, any_value(parts)
from wanted
where stage = $stage and item in (select unnest($items)) and parts is not null
group by item, fingerprint
