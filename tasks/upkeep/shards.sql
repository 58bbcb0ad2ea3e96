-- one row a shard of current volumes: its recipe, its size and its rows as (row, volume, CRC-32)
select
    volumes.shard_path, any_value(volumes.recipe_id), max(size_bytes),
    list(struct_pack(row_index := row_index, volume_name := volume_name, crc32 := crc32) order by row_index)
from current_shard_volumes as volumes
left join current_shards as shards using (shard_path)
where volumes.shard_path is not null
group by volumes.shard_path
order by volumes.shard_path
