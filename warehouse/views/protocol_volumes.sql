-- protocol x volume of the split valid: rows that each named protocol of the literature scores
with volumes as (
    select
        volumes.volume_name, volumes.scan_id,
        volumes.volume_name in (select volume_name from current_exclusions) as is_excluded,
        trim(reports.findings) as findings,
        row_number() over (
            partition by volumes.scan_id
            order by try_cast(regexp_extract(volumes.volume_name, '_(\d+)$', 1) as integer), volumes.volume_name
        ) as reconstruction
    from current_volumes as volumes
    left join current_reports as reports using (scan_id)
    where volumes.split = 'valid'
),
scans as (
    select scan_id, row_number() over (partition by coalesce(findings, scan_id) order by scan_id) as copy
    from (select distinct scan_id, findings from volumes where not is_excluded)
)
-- Every reconstruction is an item of its own, volumes that are no chest CT too.
select 'published' as protocol, volume_name, scan_id, volume_name as item from volumes
union all
-- An item is the mean of a scan's reconstructions.
select 'scans-1564', volume_name, scan_id, scan_id from volumes
union all
select 'scans-1551', volume_name, scan_id, scan_id from volumes where not is_excluded
union all
select 'volumes-3002', volume_name, scan_id, volume_name from volumes where not is_excluded
union all
-- Retrieval: one reconstruction of each scan, and of scans with the same Findings the first.
select 'pairs-1493', volumes.volume_name, volumes.scan_id, volumes.volume_name
from volumes
join scans on scans.scan_id = volumes.scan_id and scans.copy = 1
where not is_excluded
qualify row_number() over (partition by volumes.scan_id order by reconstruction) = 1
