-- rejected item of a variant x fingerprint
select item, fingerprint, any_value(reason), bool_or(is_permanent)
from current_rejects
where stage = $stage and variant = $variant
group by item, fingerprint
