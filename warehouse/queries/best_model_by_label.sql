-- the best of our models for each abnormality by AUROC on $dataset, $split, with its interval
select
    abnormality, max_by(model_id, value) as model_id, max(value) as auroc, max_by(ci_low, value) as ci_low,
    max_by(ci_high, value) as ci_high, max_by(n, value) as n, max_by(n_positive, value) as n_positive
from current_metrics
where metric = 'auroc' and abnormality <> 'macro' and dataset = $dataset and split = $split and label_source = 'published'
group by abnormality
order by auroc desc
