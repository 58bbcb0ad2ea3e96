-- label set x labeller x abnormality: share of positive labels over all splits
with counts as (
    select label_set, labeller_id, abnormality, sum(n)::bigint as n, sum(n_positive)::bigint as n_positive
    from label_prevalence
    group by label_set, labeller_id, abnormality
)
select label_set, labeller_id, abnormality, n, n_positive
from counts
where n > 0
order by
    label_set, labeller_id <> 'published', labeller_id,
    sum(n_positive) over (partition by label_set, abnormality) desc, abnormality
