-- problem of upstream data: count of items, with one of them
select problem, count(*) as count_items, left(min(item), 200) as item, left(arg_min(detail, item), 300) as detail
from data_quality
group by problem
order by count_items desc, problem
