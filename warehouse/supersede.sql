-- update of {table}: `superseded_by_run` of every row in a group that has a row of one of the given runs
with touched as (select distinct {group} from {table} where run_id in (select unnest(?))),
runs as (select distinct {group}, run_id from {table} semi join touched as other on {same}),
other as (select *, lead(run_id) over (partition by {group} order by run_id) as next_run from runs)
update {table} set superseded_by_run = other.next_run from other
where {same} and {table}.run_id = other.run_id and {table}.superseded_by_run is distinct from other.next_run
