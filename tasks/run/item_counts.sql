-- stage $stage x variant $variant: rejected and done items
select count(*) filter (is_rejected) as count_rejected, count(*) filter (is_done) as count_done
from work_items
where stage = $stage and variant = $variant
