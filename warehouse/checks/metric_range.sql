-- metric with contradictory counts, an impossible value or interval, or a value outside its interval
-- Intervals without a method are of earlier versions, whose percentiles may miss the value.
select
    model_id, dataset, split, protocol, unit, label_source, abnormality, metric, value, ci_low, ci_high, n, n_positive
from changed_metrics
where
    n < 0 or n_positive < 0 or n_positive > n or ci_low > ci_high or bca_low > bca_high
    or ci_method is not null and value between ci_low and ci_high is not true
    or metric in (
        'auroc', 'average_precision', 'accuracy', 'f1', 'weighted_f1', 'precision', 'recall', 'specificity', 'brier',
        'calibration_error'
    )
    and not value between 0 and 1
