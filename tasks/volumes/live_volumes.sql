-- one row a current volume of the shards $1
select * from current_shard_volumes where shard_path in (select unnest($1)) order by shard_path, row_index
