-- labeller x data set x abnormality, 'macro' or 'micro': scores on hand-labelled reports. Reports that trained the labeller are left out
select
    model_id as labeller_id, dataset, abnormality,
    max(value) filter (metric = 'f1') as f1,
    max(ci_low) filter (metric = 'f1') as f1_ci_low,
    max(ci_high) filter (metric = 'f1') as f1_ci_high,
    -- Versions without the column wrote percentiles of a bootstrap.
    max(coalesce(ci_method, if(ci_low is null, null, 'percentile'))) filter (metric = 'f1') as f1_ci_method,
    max(value) filter (metric = 'precision') as precision,
    max(value) filter (metric = 'recall') as recall,
    max(value) filter (metric = 'auroc') as auroc,
    max(value) filter (metric = 'accuracy') as accuracy,
    max(n_positive) as n_positive, max(n) as n
from current_metrics
where label_source = 'hand'
group by model_id, dataset, abnormality
order by labeller_id, dataset, abnormality not in ('macro', 'micro'), abnormality
