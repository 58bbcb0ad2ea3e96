-- scan x abnormality x labeller. Published labels stand under the labeller 'published', imported ones under the name of their source
select
    scan_id, if(contains(scan_id, '_'), split_part(scan_id, '_', 1), 'external') as split, abnormality, labeller_id,
    value, probability, is_training, labeller_warning, coalesce(label_set, 'ct-rate-18') as label_set
from current_labels
anti join (select scan_id from reports where superseded_by_run is null and is_withdrawn) using (scan_id)
union all
select
    scan_id, if(contains(scan_id, '_'), split_part(scan_id, '_', 1), 'external'), abnormality, 'published',
    value, null, false, null, 'ct-rate-18'
from current_published_labels
