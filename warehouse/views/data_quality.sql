-- item x problem: faults of upstream data and unfinished work. They never stop a publish
select distinct scan_id as item, 'labels_disputed' as problem, 'its reconstructions are labelled differently' as detail
from current_published_labels
where is_disputed
union all
select scan_id, 'label_without_report', 'has published labels and no report'
from scans
where has_published_labels and not has_report
union all
select scan_id, 'scan_without_volume', 'is labelled or reported, and the metadata knows no volume of it'
from scans
where count_volumes = 0
union all
select scan_id, 'report_disputed', 'its reconstructions are reported differently'
from current_reports
where is_disputed
union all
select scan_id, 'report_empty', 'has neither findings nor an impression'
from current_reports
where trim(concat_ws(' ', findings, impression)) = ''
union all
select
    scan_id, 'report_duplicate',
    count(*) over same_text || ' scans share its text, first ' || min(scan_id) over same_text
from current_reports
where trim(concat_ws(' ', findings, impression)) <> ''
window same_text as (partition by md5(concat_ws('|', findings, impression)))
qualify count(*) over same_text > 1
union all
select item, 'volume_not_converted', 'wanted for ' || variant || ', in no shard and not rejected'
from pending_convert
union all
select
    volume_name,
    if(spacing_x_mm is null or spacing_y_mm is null or spacing_z_mm is null, 'spacing_missing', 'spacing_implausible'),
    format(
        '{} x {} x {} mm',
        coalesce(spacing_x_mm::varchar, '?'), coalesce(spacing_y_mm::varchar, '?'), coalesce(spacing_z_mm::varchar, '?')
    )
from current_volumes
where
    spacing_x_mm is null or spacing_y_mm is null or spacing_z_mm is null
    or not spacing_x_mm between 0.1 and 20 or not spacing_y_mm between 0.1 and 20 or not spacing_z_mm between 0.1 and 20
union all
select volume_name, 'metadata_missing', 'has no row in the metadata'
from current_volumes
where metadata is null or cardinality(metadata) = 0
union all
select volume_name, 'cell_unreadable', cell.name || ' is ' || metadata[cell.name]
from (
    select volume_name, metadata, unnest([
        {name: 'XYSpacing', value: spacing_x_mm::varchar}, {name: 'ZSpacing', value: spacing_z_mm::varchar},
        {name: 'RescaleSlope', value: rescale_slope::varchar},
        {name: 'RescaleIntercept', value: rescale_intercept::varchar},
        {name: 'NumberofSlices', value: count_slices::varchar},
        {name: 'Rows', value: count_rows::varchar}, {name: 'Columns', value: count_columns::varchar},
        {name: 'PatientAge', value: patient_age_years::varchar}, {name: 'StudyDate', value: study_date::varchar}
    ]) as cell
    from current_volumes
)
where
    cell.value is null
    and regexp_replace(lower(metadata[cell.name]), '[^a-z0-9]', '', 'g') not in ('', 'nan', 'none', 'null', 'na', 'nat')
union all
select volume_name, 'file_missing', coalesce(path, 'its file') || ' is not in the source'
from current_volumes
where coalesce(sha256, checksum) is null
union all
select volume_name, 'spacing_disputed', spacing_note
from current_shard_volumes
where spacing_note is not null
union all
select volume_name, 'orientation_not_lps', 'its header says ' || header_orientation || ', and the array is taken as it lies'
from current_shard_volumes
join current_volumes using (volume_name)
where header_orientation <> 'LPS' and storage in ('v1', 'v2')
union all
select volume_name, 'orientation_unknown', 'its header states no orientation, and the array is taken as it lies'
from current_shard_volumes
join current_volumes using (volume_name)
where header_orientation is null and storage in ('v1-header', 'v2-header')
union all
select volume_name, 'orientation_not_lps', 'its metadata says ImageOrientationPatient ' || orientation
from (select volume_name, metadata['ImageOrientationPatient'] as orientation from current_volumes)
where
    list_transform(string_split(trim(orientation, '[] '), ','), lambda part: round(try_cast(trim(part) as double), 2))
    <> [1, 0, 0, 0, 1, 0]
union all
select
    volume_name, 'shape_disputed',
    format('{} in the file, {} x {} x {} in the metadata', array_to_string(shape_in, ' x '), count_columns, count_rows, count_slices)
from current_shard_volumes
join current_volumes using (volume_name)
where
    shape_in <> [count_columns, count_rows, count_slices]
    -- arrays that are turned may have the axes of the metadata in another order
    and (storage in ('v1', 'v2') or list_sort(shape_in) <> list_sort([count_columns, count_rows, count_slices]))
union all
select
    volume_name, 'slices_doubtful',
    format('{} slices hold one value alone, {} repeat the one before', count_blank_slices, count_repeated_slices)
from current_shard_volumes
where count_blank_slices > 0 or count_repeated_slices > 0
union all
select
    model_id, 'texts_cut',
    format('embed: {} of {} reports lost {} tokens beyond the limit of the model', count(*) filter (count_cut_tokens > 0), count(*), sum(count_cut_tokens))
from current_latents
where kind = 'report'
group by model_id
having sum(count_cut_tokens) > 0
union all
select
    labeller_id, 'texts_cut',
    format('label: {} of {} reports lost {} tokens beyond the limit of the labeller', count(*) filter (cut > 0), count(*), sum(cut))
from (select labeller_id, scan_id, max(count_cut_tokens) as cut from current_labels group by all)
group by labeller_id
having sum(cut) > 0
union all
select model_id, 'texts_cut', format('train: {} training reports reach beyond the limit of the model', count_cut_texts)
from current_models
where count_cut_texts > 0
