-- stage x reason: count of open rejects, with up to three of them
select
    stage, reason, count(*) as count_items, bool_and(coalesce(is_permanent, false)) as is_permanent,
    arg_min({item: left(item, 200), detail: left(detail, 300)}, item, 3) as examples
from open_rejects
group by stage, reason
order by count_items desc, stage, reason
