-- a model with a recipe and recorded samples: how many of them moved since it was trained
with trained as (
    select models.model_id, models.preset, models.recipe_id, samples.sample_id, samples.fingerprint
    from current_models as models
    join current_model_samples as samples using (model_id)
    where models.recipe_id is not null
),
lost as (
    select
        model_id, preset, trained.recipe_id, count(*) as count_samples,
        count(*) filter (now_.volume_name is null) as count_removed,
        count(*) filter (now_.fingerprint <> trained.fingerprint) as count_changed
    from trained
    left join training_samples as now_ on now_.recipe_id = trained.recipe_id and now_.volume_name = trained.sample_id
    group by model_id, preset, trained.recipe_id
),
available as (select recipe_id, count(*) as count_available from training_samples group by recipe_id)
select
    model_id, preset, recipe_id, count_samples,
    coalesce(count_available, 0) - (count_samples - count_removed) as count_added,
    count_changed, count_removed,
    count_added + count_changed + count_removed as count_moved_samples,
    count_moved_samples / count_samples as moved_share,
    count_moved_samples > 0 as is_stale
from lost
left join available using (recipe_id)
