-- volume x recipe: shard row made from the volume's present file and spacing and the present recipe
select shards.*
from current_shard_volumes as shards
semi join current_wanted as wanted
    on wanted.stage = 'convert' and wanted.variant = shards.recipe_id and wanted.item = shards.volume_name
    and wanted.fingerprint = shards.fingerprint
semi join current_volumes as volumes on volumes.volume_name = shards.volume_name
