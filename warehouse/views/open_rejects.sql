-- stage x variant x item: reject of the item's present content, not done since
select rejects.*
from current_rejects as rejects
where
    stage not in (select stage from current_wanted)
    or exists (
        from work_items
        where
            work_items.stage = rejects.stage and work_items.variant = rejects.variant
            and work_items.item = rejects.item and work_items.fingerprint = rejects.fingerprint
            and not work_items.is_done
    )
