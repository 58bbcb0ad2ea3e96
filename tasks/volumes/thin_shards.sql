-- one row a current shard with both current and superseded volumes
select shard_path, any_value(shards.recipe_id), any_value(size_bytes), count(*),
    count(*) filter (shard_volumes.superseded_by_run is not null) as count_dead
from current_shards as shards
join shard_volumes using (shard_path)
group by shard_path
having count_dead between 1 and count(*) - 1
order by all
