-- scan x abnormality x labeller: label that contradicts the published label
select
    labeller_id, split, scan_id, abnormality, ours.value, published.value as published_value, ours.probability,
    ours.is_training
from all_labels as ours
join current_published_labels as published using (scan_id, abnormality)
where labeller_id <> 'published' and ours.value <> published.value
