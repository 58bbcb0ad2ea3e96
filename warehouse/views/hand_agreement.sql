-- labeller x abnormality: agreement with the hand labels. Reports that trained the labeller are left out
with pairs as (
    select
        labeller_id, abnormality, count(*) as n, count(*) filter (labels.value = hand.value) as n_agree,
        count(*) filter (labels.value = 1) as n_positive, count(*) filter (hand.value = 1) as n_hand_positive
    from current_hand_labels as hand
    join all_labels as labels using (scan_id, abnormality)
    where labels.value is not null and is_training is not true
    group by labeller_id, abnormality
),
chance as (
    select
        *, n_agree / n as agreement,
        (n_positive * n_hand_positive + (n - n_positive) * (n - n_hand_positive)) / (n * n::double) as expected
    from pairs
)
select
    labeller_id, abnormality, n, agreement, if(expected < 1, (agreement - expected) / (1 - expected), null) as kappa,
    n_positive, n_hand_positive
from chance
order by labeller_id, abnormality
