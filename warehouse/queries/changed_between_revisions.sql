-- volume or report that is new, changed or withdrawn at revision $new, compared with revision $old
with versions as (
    select 'volume' as kind, volume_name as item, fingerprint, revision, is_withdrawn, run_id from volumes
    union all
    select 'report', scan_id, fingerprint, revision, is_withdrawn, run_id from reports
),
before as (
    select kind, item, arg_max(fingerprint, run_id) as fingerprint
    from versions
    where revision = $old
    group by kind, item
),
after as (
    select
        kind, item, arg_max(fingerprint, run_id) as fingerprint,
        coalesce(arg_max_null(is_withdrawn, run_id), false) as is_withdrawn
    from versions
    where revision = $new
    group by kind, item
)
select
    kind, item,
    case when is_withdrawn then 'withdrawn' when before.item is null then 'new' else 'changed' end as change,
    before.fingerprint as old_fingerprint, after.fingerprint as new_fingerprint
from after
left join before using (kind, item)
where is_withdrawn or before.fingerprint is distinct from after.fingerprint
order by kind, item
