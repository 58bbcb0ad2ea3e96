-- stage x variant x item that is wanted, and its state: done, permanently rejected or neither
select
    wanted.stage, wanted.variant, wanted.item, wanted.fingerprint,
    done.item is not null as is_done,
    done.item is null and refused.item is not null as is_rejected
from current_wanted as wanted
left join done
    on done.stage = wanted.stage and done.variant = wanted.variant
    and done.item = wanted.item and done.fingerprint = wanted.fingerprint
left join (select distinct stage, variant, item, fingerprint from current_rejects where is_permanent) as refused
    on refused.stage = wanted.stage and refused.variant = wanted.variant
    and refused.item = wanted.item and refused.fingerprint = wanted.fingerprint
