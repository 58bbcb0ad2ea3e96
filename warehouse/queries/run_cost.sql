-- run $run_id: status, duration, items and the rows that it left by table
select
    stage, variant, status, host, duration_s, count_done, count_rejected,
    duration_s / nullif(count_done, 0) as seconds_per_item,
    (
        select map_from_entries(list(struct_pack(k := table_name, v := rows) order by table_name))
        from (
            select table_name, sum(count_rows) as rows from record_files
            where contains(path, '/' || $run_id || '-') group by table_name
        )
    ) as rows_by_table
from runs
where run_id = $run_id
order by recorded_at
