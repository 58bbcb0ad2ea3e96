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
        max(value) filter (metric = 'f1') as f1,
        max(n) as n
    from current_metrics
    where abnormality = 'macro' and label_source <> 'hand'
    group by all
),
decided as (
    select
        model_id as model, dataset, split, protocol, unit, label_set, label_source, abnormality,
        max(n) as n, max(n_positive) as positives,
        coalesce(max(value) filter (metric = 'recall'), 0) * max(n_positive) as hits,
        (1 - coalesce(max(value) filter (metric = 'specificity'), 1)) * (max(n) - max(n_positive)) as false_alarms
    from current_metrics
    where abnormality not in ('macro', 'micro') and label_source <> 'hand' and metric in ('recall', 'specificity')
    group by all
),
totals as (
    select
        model, dataset, split, protocol, unit, label_set, label_source,
        sum(n) - sum(positives) as negatives, nullif(sum(positives), 0) as positives,
        sum(hits) as hits, sum(false_alarms) as false_alarms
    from decided
    group by all
),
-- CRG of the VLM3D challenge (arXiv 2505.17167): U / (2 U - s), with U = negatives / 2, r = U / positives and
-- s = r true positives - r false negatives - false positives.
scores as (
    select
        * exclude (negatives, positives, hits, false_alarms),
        negatives / 2 / (negatives - negatives / 2 / positives * (2 * hits - positives) + false_alarms) as crg
    from totals
),
printed as (
    select
        model, if(dataset = 'ct-rate-valid', 'ct-rate', dataset) as dataset,
        case dataset when 'ct-rate-valid' then 'valid' when 'rad-chestct' then 'external' end as split,
        max(value) filter (metric = 'auroc') as auroc,
        max(value) filter (metric = 'weighted_f1') as weighted_f1,
        max(value) filter (metric = 'accuracy') as accuracy,
        max(value) filter (metric = 'f1') as f1,
        max(n) filter (metric in ('auroc', 'f1')) as n,
        max(cohort) filter (metric in ('auroc', 'f1')) as cohort
    from published_results
    group by all
)
select macros.*, unit || 's-' || macros.n as cohort, scores.crg, false as is_published
from macros
left join scores using (model, dataset, split, protocol, unit, label_set, label_source)
union all by name
select *, 'published' as protocol, 'ct-rate-18' as label_set, 'published' as label_source, true as is_published
from printed
where auroc is not null
-- Rows compare with the rows of their cohort alone, which stand together.
order by dataset, split, label_set, cohort nulls last, auroc desc nulls last
