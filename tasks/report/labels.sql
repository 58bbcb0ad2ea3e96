-- abnormality or macro: scores of a model on a split, in units of scans, by its own protocol
pivot (
    select abnormality, metric, value, max(n) over label as n, max(n_positive) over label as n_positive,
        max(ci_low) filter (metric = 'auroc') over label as ci_low,
        max(ci_high) filter (metric = 'auroc') over label as ci_high,
        max(coalesce(ci_method, if(ci_low is null, null, 'percentile'))) filter (metric = 'auroc') over label
            as ci_method,
        max(threshold_source) over label as threshold_source,
        bool_or(has_few_patients) filter (metric = 'auroc') over label as has_few_patients
    from current_metrics
    where model_id = $model_id and dataset = $dataset and split = $split and label_source = $label_source
        and abnormality <> 'micro' and protocol not in (select protocol from named_protocols) and unit = 'scan'
    window label as (partition by abnormality)
)
on metric in ('auroc', 'average_precision', 'f1', 'weighted_f1', 'accuracy', 'precision')
using max(value)
group by abnormality, n, n_positive, ci_low, ci_high, ci_method, threshold_source, has_few_patients
order by auroc desc nulls last, abnormality
