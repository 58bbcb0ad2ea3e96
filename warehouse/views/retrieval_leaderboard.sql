-- model x data set x split x protocol x unit x task: recall and median rank of our models and of published ones
with ours as (
    select
        model_id as model, dataset, split, protocol, unit,
        regexp_replace(task, '_(recall|median_rank)$', '') as task,
        max(value) filter (task like '%_recall' and k = 5) as recall_at_5,
        max(value) filter (task like '%_recall' and k = 10) as recall_at_10,
        max(value) filter (task like '%_recall' and k = 50) as recall_at_50,
        max(value) filter (task like '%_recall' and k = 100) as recall_at_100,
        max(value) filter (task like '%_median_rank') as median_rank,
        max(n) as n
    from current_retrieval
    where task similar to '.*_(recall|median_rank)'
    group by all
),
printed as (
    select
        model, if(dataset = 'ct-rate-valid', 'ct-rate', dataset) as dataset,
        case dataset when 'ct-rate-valid' then 'valid' when 'rad-chestct' then 'external' end as split,
        regexp_extract(metric, '^(.*)_recall_at_', 1) as task,
        max(value) filter (metric like '%_recall_at_5') as recall_at_5,
        max(value) filter (metric like '%_recall_at_10') as recall_at_10,
        max(value) filter (metric like '%_recall_at_50') as recall_at_50,
        max(value) filter (metric like '%_recall_at_100') as recall_at_100,
        max(n) as n, max(cohort) as cohort
    from published_results
    where metric like '%_recall_at_%'
    group by all
)
-- The largest count of a task names the cohort: reports with the same text are fewer.
select
    *, if(protocol in (select protocol from named_protocols where is_retrieval), 'pairs', unit || 's') || '-'
    || max(n) over (partition by model, dataset, split, protocol, unit) as cohort, false as is_published
from ours
union all by name
select *, 'published' as protocol, true as is_published
from printed
order by dataset, split, task, cohort nulls last, recall_at_10 desc nulls last
