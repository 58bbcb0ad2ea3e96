-- labeller x split x abnormality: share of positive labels
select
    labeller_id, label_set, split, abnormality, count(value) as n, count(*) filter (value = 1) as n_positive,
    count(*) filter (value = 1) / nullif(count(value), 0) as prevalence
from all_labels
group by labeller_id, label_set, split, abnormality
order by labeller_id, split, abnormality
