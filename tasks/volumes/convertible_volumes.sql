-- one row a current volume with a file
with volumes as (  -- a warehouse that was not migrated yet has no checksum
    select * from current_volumes union all by name (select null::varchar as checksum where false)
)
select
    volume_name, volumes.source, path, size_bytes, sha256, checksum, spacing_x_mm, spacing_y_mm, spacing_z_mm,
    volumes.storage, rescale_slope, rescale_intercept, sources.revision, count_columns, count_rows, count_slices
from volumes
left join current_sources as sources on sources.source = volumes.source
where coalesce(sha256, checksum) is not null
order by all
