-- model x data set x split x protocol x unit x label set x label source: macro averages of our models and of published ones
with macros as (
    select
        model_id as model, dataset, split, protocol, unit, label_set, label_source,
        max(value) filter (metric = 'auroc') as auroc,
        max(ci_low) filter (metric = 'auroc') as auroc_ci_low,
        max(ci_high) filter (metric = 'auroc') as auroc_ci_high,
        -- Versions without the column wrote percentiles of a bootstrap.
        max(coalesce(ci_method, if(ci_low is null, null, 'percentile'))) filter (metric = 'auroc') as auroc_ci_method,
        max(value) filter (metric = 'weighted_f1') as weighted_f1,
        max(value) filter (metric = 'accuracy') as accuracy,
        max(n) as n
    from current_metrics
    where abnormality = 'macro' and label_source <> 'hand'
    group by all
),
printed as (
    select
        model, if(dataset = 'ct-rate-valid', 'ct-rate', dataset) as dataset,
        if(dataset = 'ct-rate-valid', 'valid', null) as split,
        max(value) filter (metric = 'auroc') as auroc,
        max(value) filter (metric = 'weighted_f1') as weighted_f1,
        max(value) filter (metric = 'accuracy') as accuracy,
        max(n) as n
    from published_results
    group by all
)
select *, false as is_published from macros
union all by name
select *, 'published' as protocol, 'ct-rate-18' as label_set, 'published' as label_source, true as is_published
from printed
where auroc is not null
order by dataset, split, protocol = 'published', auroc desc nulls last
