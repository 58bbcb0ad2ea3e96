-- label set x label source x abnormality: our best model by AUROC on $dataset, $split, with its interval
select
    coalesce(to_json(metrics) ->> '$.label_set', 'ct-rate-18') as label_set, -- an older file lacks the column
    label_source, abnormality, arg_max_null(model_id, value) as model_id, max(value) as auroc,
    arg_max_null(columns('^(ci_low|ci_high|ci_method|has_few_patients)$'), value) as '\0', -- an older file lacks two
    arg_max_null(n, value) as n, arg_max_null(n_positive, value) as n_positive
from current_metrics as metrics
where
    metric = 'auroc' and abnormality not in ('macro', 'micro') and unit = 'scan' and label_source <> 'hand'
    and protocol not in ('scans-1551', 'scans-1564') -- an older file lacks named_protocols
    and dataset = $dataset and split = $split
group by 1, label_source, abnormality
order by 1, label_source <> 'published', label_source, auroc desc, abnormality
