-- converted volume of a recipe, in the order of the shards
select volume_name, fingerprint, shard_path, row_index
from converted_volumes
where recipe_id = ?
order by shard_path, row_index
