-- model with a recipe and recorded samples: number of samples that moved since its training
with trained as (
    select
        models.model_id, models.preset, models.recipe_id, models.config ->> '$.labels_of' as labeller_id,
        models.kind = 'ct-clip' or labeller_id is null as reads_all, samples.sample_id, samples.fingerprint
    from current_models as models
    join current_model_samples as samples using (model_id)
    where models.recipe_id is not null
),
labelled as (
    select recipe_id, labeller_id, volume_name, fingerprint from labelled_samples
    where labeller_id in (select labeller_id from trained)
),
-- A model may name the labeller whose labels it learned. These labels are part of its samples.
-- A fine-tuned model reads labelled volumes alone. A CT-CLIP reads the others too.
available as (
    select recipe_id, null as labeller_id, true as reads_all, volume_name, fingerprint from training_samples
    union all
    select recipe_id, labeller_id, false, volume_name, fingerprint from labelled
    union all
    select
        samples.recipe_id, named.labeller_id, true, samples.volume_name,
        coalesce(labelled.fingerprint, samples.fingerprint)
    from training_samples as samples
    cross join (select distinct labeller_id from trained where reads_all and labeller_id is not null) as named
    left join labelled using (recipe_id, labeller_id, volume_name)
),
lost as (
    select
        model_id, preset, trained.recipe_id, trained.labeller_id, trained.reads_all, count(*) as count_samples,
        count(*) filter (now_.volume_name is null) as count_removed,
        count(*) filter (now_.fingerprint <> trained.fingerprint) as count_changed
    from trained
    left join available as now_
        on now_.recipe_id = trained.recipe_id and now_.labeller_id is not distinct from trained.labeller_id
        and now_.reads_all = trained.reads_all and now_.volume_name = trained.sample_id
    group by model_id, preset, trained.recipe_id, trained.labeller_id, trained.reads_all
),
counted as (
    select recipe_id, labeller_id, reads_all, count(*) as count_available
    from available
    group by recipe_id, labeller_id, reads_all
)
select
    model_id, preset, lost.recipe_id, count_samples,
    coalesce(count_available, 0) - (count_samples - count_removed) as count_added, count_changed, count_removed
from lost
left join counted
    on counted.recipe_id = lost.recipe_id and counted.labeller_id is not distinct from lost.labeller_id
    and counted.reads_all = lost.reads_all
