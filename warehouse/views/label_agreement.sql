-- labeller x split x abnormality: agreement with the published labels. Scans whose reports trained the labeller are left out
with pairs as (
    select
        labeller_id, split, abnormality, count(*) as n,
        count(*) filter (ours.value = published.value) as n_agree,
        count(*) filter (ours.value = 1) as n_positive,
        count(*) filter (published.value = 1) as n_published_positive,
        count(*) filter (ours.value = 1 and published.value = 0) as n_only_labeller,
        count(*) filter (ours.value = 0 and published.value = 1) as n_only_published
    from all_labels as ours
    join current_published_labels as published using (scan_id, abnormality)
    where labeller_id <> 'published' and ours.value is not null and published.value is not null
        and is_training is not true
    group by labeller_id, split, abnormality
),
chance as (
    select
        *, n_agree / n as agreement,
        (n_positive * n_published_positive + (n - n_positive) * (n - n_published_positive)) / (n * n::double)
            as expected
    from pairs
)
select
    labeller_id, split, abnormality, n, agreement,
    if(expected < 1, (agreement - expected) / (1 - expected), null) as kappa,
    n_positive, n_published_positive, n_only_labeller, n_only_published
from chance
order by labeller_id, split, abnormality
