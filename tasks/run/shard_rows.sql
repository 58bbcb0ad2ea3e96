-- one row a current volume of a shard, of recipe $recipe_id or, for null, of all recipes
-- `is_wanted`: of the volume's present fingerprint; `is_rejected`: rejected for good since, with the shard's fingerprint
select
    shards.recipe_id, shards.volume_name, shards.shard_path, shards.fingerprint,
    made.volume_name is not null as is_wanted,
    coalesce(rejects.run_id > shards.run_id, false) as is_rejected
from current_shard_volumes as shards
left join converted_volumes as made
    on made.volume_name = shards.volume_name and made.recipe_id = shards.recipe_id
left join (
    select variant, item, fingerprint, max(run_id) as run_id
    from current_rejects
    where stage = 'convert' and is_permanent
    group by all
) as rejects
    on rejects.variant = shards.recipe_id and rejects.item = shards.volume_name
    and rejects.fingerprint = shards.fingerprint
where shards.recipe_id = coalesce($recipe_id, shards.recipe_id) and shards.shard_path is not null
order by shards.recipe_id, shards.shard_path
