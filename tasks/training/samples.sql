-- one row a training sample; labels in the order of the abnormalities, null where the labeller has not read the report
with labelled as (
    select scan_id, list(value order by list_position($names, abnormality)) as labels
    from all_labels
    where labeller_id = $labeller_id
    group by scan_id
)
select volume_name, scan_id, patient_id, split, shard_path, row_index, findings, impression, labels, fingerprint
from training_samples
left join labelled using (scan_id)
where recipe_id = $recipe_id
order by volume_name
