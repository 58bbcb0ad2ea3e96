-- labeller x other labeller x split x abnormality: agreement of two sources of labels, in both directions. Published labels are always the other. Scans whose reports trained one of both are left out
with known as (
    select scan_id, abnormality, labeller_id, label_set, split, value = 1 as is_positive
    from all_labels
    where value is not null and is_training is not true
),
counted as (
    select
        ours.labeller_id, theirs.labeller_id as other_id, ours.label_set, ours.split, abnormality, count(*) as n,
        count(*) filter (ours.is_positive) as n_positive,
        count(*) filter (theirs.is_positive) as n_other_positive,
        count(*) filter (ours.is_positive and not theirs.is_positive) as n_only_labeller,
        count(*) filter (theirs.is_positive and not ours.is_positive) as n_only_other
    from known as ours
    join known as theirs using (scan_id, abnormality)
    where ours.label_set = theirs.label_set and theirs.labeller_id > ours.labeller_id
    group by all
),
turned as (
    select * from counted where labeller_id <> 'published'
    union all by name
    select
        other_id as labeller_id, labeller_id as other_id, label_set, split, abnormality, n,
        n_other_positive as n_positive, n_positive as n_other_positive, n_only_other as n_only_labeller,
        n_only_labeller as n_only_other
    from counted
    where other_id <> 'published'
),
chance as (
    select
        *, (n - n_only_labeller - n_only_other) / n as agreement,
        (n_positive * n_other_positive + (n - n_positive) * (n - n_other_positive)) / (n * n::double) as expected
    from turned
)
select
    labeller_id, other_id, label_set, split, abnormality, n, agreement,
    if(expected < 1, (agreement - expected) / (1 - expected), null) as kappa,
    n_positive, n_other_positive, n_only_labeller, n_only_other,
    if(other_id = 'published', n_other_positive, null) as n_published_positive,
    if(other_id = 'published', n_only_other, null) as n_only_published
from chance
order by labeller_id, other_id, split, abnormality
