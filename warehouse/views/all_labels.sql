-- scan x abnormality x labeller, the published labels being those of a labeller 'published'
select scan_id, split_part(scan_id, '_', 1) as split, abnormality, labeller_id, value, probability from current_labels
union all
select scan_id, split_part(scan_id, '_', 1), abnormality, 'published', value, null from current_published_labels
