-- one row a training sample; labels in the order of $names, null where unknown or without a labeller
select
    volume_name, scan_id, patient_id, split, shard_path, row_index, samples.findings, samples.impression,
    [labelled.labels[name] for name in $names] as labels,
    -- A training that names its labels is stale once they change.
    if($names_labels, coalesce(labelled.fingerprint, samples.fingerprint), samples.fingerprint) as fingerprint
from training_samples as samples
left join (
    select recipe_id, volume_name, labels, fingerprint from labelled_samples where labeller_id = $labeller_id
) as labelled using (recipe_id, volume_name)
where recipe_id = $recipe_id
order by volume_name
