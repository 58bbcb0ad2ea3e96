-- stage x variant, in columns that fit a terminal of 80 characters; the view stage_status has more
select
    stage, case when length(variant) > 20 then '…' || right(variant, 19) else variant end as variant,
    done, pending, rejected, coalesce(last_status, 'never run') as "last run",
    strftime(last_finished_at::timestamp, '%m-%d %H:%M') as "at (UTC)"
from stage_status
