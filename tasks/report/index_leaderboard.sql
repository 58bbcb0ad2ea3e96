-- model of the data root x cohort and labels, beside the published results on the same cohort
with own as (
    select *, protocol = 'published' as by_published_protocol
    from model_leaderboard
    where not is_published
),
alike as (
    select distinct dataset, split, label_set, label_source, cohort, by_published_protocol from own
)
from own
union all by name
from model_leaderboard as printed
join alike using (dataset, split, label_set, label_source, cohort)
where is_published
order by
    dataset, split, label_set, label_source <> 'published', label_source, by_published_protocol, cohort,
    auroc desc nulls last, model
