-- abnormality x threshold of its ROC curve: sensitivity and specificity there, and the threshold of the decisions
select
    curves.abnormality, curves.threshold, y as sensitivity, 1 - x as specificity, metrics.threshold as chosen,
    metrics.n_positive, metrics.n
from current_curves as curves
join current_metrics as metrics
    using (model_id, dataset, split, protocol, unit, label_source, abnormality)
where model_id = $model_id and dataset = $dataset and split = $split and protocol not in (select protocol from named_protocols) and unit = 'scan'
    and label_source = $label_source and curve = 'roc' and metric = 'accuracy' and curves.threshold is not null
order by curves.abnormality, curves.threshold
