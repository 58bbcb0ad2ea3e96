-- recipe x volume to train a model on: train split, converted, not excluded, with a report
select
    shard_volumes.recipe_id, volumes.volume_name, volumes.scan_id, volumes.patient_id, volumes.split,
    shard_volumes.shard_path, shard_volumes.row_index, reports.findings, reports.impression,
    md5(concat_ws('|', shard_volumes.fingerprint, reports.fingerprint)) as fingerprint
from converted_volumes as shard_volumes
join current_volumes as volumes using (volume_name)
join current_reports as reports on reports.scan_id = volumes.scan_id
anti join current_exclusions as exclusions on exclusions.volume_name = volumes.volume_name
where volumes.split = 'train' and trim(concat_ws(' ', reports.findings, reports.impression)) <> ''
