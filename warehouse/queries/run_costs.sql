-- stage x variant: time and items of all finished runs
select
    stage, variant, count(*) as count_runs, sum(duration_s) as duration_s, sum(count_done) as count_done,
    sum(count_rejected) as count_rejected, sum(duration_s) / nullif(sum(count_done), 0) as seconds_per_item
from runs
where status <> 'running'
group by stage, variant
order by duration_s desc
