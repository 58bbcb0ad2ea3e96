-- one row a current volume with a file
select
    volume_name, volumes.source, path, size_bytes, sha256, spacing_x_mm, spacing_y_mm, spacing_z_mm, volumes.storage,
    rescale_slope, rescale_intercept, sources.revision, count_columns, count_rows, count_slices
from current_volumes as volumes
left join current_sources as sources on sources.source = volumes.source
where sha256 is not null
order by all
