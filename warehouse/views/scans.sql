-- scan with a volume, a report or a published label
with volumes_by_scan as (
    select
        scan_id, any_value(patient_id) as patient_id, any_value(split) as split, count(*) as count_volumes,
        count(excluded.volume_name) as count_excluded_volumes
    from current_volumes
    left join (select distinct volume_name from current_exclusions) as excluded using (volume_name)
    group by scan_id
),
labelled as (select distinct scan_id from current_published_labels),
scan_ids as (
    select scan_id from volumes_by_scan
    union select scan_id from current_reports
    union select scan_id from labelled
)
select
    scan_ids.scan_id,
    coalesce(volumes.patient_id, reports.patient_id, regexp_replace(scan_ids.scan_id, '_[a-z]+$', '')) as patient_id,
    coalesce(
        volumes.split, reports.split,
        if(contains(scan_ids.scan_id, '_'), split_part(scan_ids.scan_id, '_', 1), 'external')
    ) as split,
    coalesce(volumes.count_volumes, 0) as count_volumes,
    coalesce(volumes.count_excluded_volumes, 0) as count_excluded_volumes,
    reports.scan_id is not null as has_report,
    labelled.scan_id is not null as has_published_labels,
    coalesce(volumes.count_volumes = volumes.count_excluded_volumes, false) as is_excluded
from scan_ids
left join volumes_by_scan as volumes using (scan_id)
left join current_reports as reports using (scan_id)
left join labelled using (scan_id)
