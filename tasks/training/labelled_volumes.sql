-- one row a labelled sample with its row in a shard; labels in the order of $names, null where unknown
select
    volume_name, scan_id, patient_id, split, shard_path, row_index, findings, impression,
    [labels[name] for name in $names] as labels, fingerprint
from labelled_samples
where recipe_id = $recipe_id and labeller_id = $labels_of
order by volume_name
