-- abnormality: our best model by AUROC on $dataset, $split, with its interval
select
    abnormality, arg_max_null(model_id, value) as model_id, max(value) as auroc,
    arg_max_null(columns('^(ci_low|ci_high|ci_method|has_few_patients)$'), value) as '\0', -- an older file lacks two
    arg_max_null(n, value) as n, arg_max_null(n_positive, value) as n_positive
from current_metrics
where
    metric = 'auroc' and abnormality not in ('macro', 'micro') and protocol <> 'published' and unit = 'scan'
    and dataset = $dataset and split = $split and label_source = 'published'
group by abnormality
order by auroc desc
