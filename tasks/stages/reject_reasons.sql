-- reason of open rejects of a stage: how many items, and one of them
select reason, count(*) as items, min(item) as "such as", any_value(detail) as detail
from open_rejects
where stage = ?
group by reason
order by items desc
