-- stage x variant: done and pending items, the latest run, and the moved samples of the newest model
with work as (
    select
        stage, variant, count(*) as wanted, count(*) filter (is_done) as done,
        count(*) filter (not is_done and not is_rejected) as pending, count(*) filter (is_rejected) as rejected
    from work_items
    group by stage, variant
),
-- A run has a row for its start and one for its end. A run without a variant counts for every variant of its stage.
ended_runs as (
    select
        run_id, stage, coalesce(variant, '') as variant,
        arg_max(status, (status <> 'running')::integer) as status,
        max(recorded_at) filter (status <> 'running') as finished_at
    from runs
    group by all
),
lines as (
    select stage, variant from work
    union
    select stage, variant from ended_runs where variant <> '' or stage not in (select stage from work)
),
run_facts as (
    select
        lines.stage, lines.variant, max(run_id) as last_run_id, arg_max(status, run_id) as last_status,
        max(finished_at) as last_finished_at
    from lines
    join ended_runs as runs on runs.stage = lines.stage and runs.variant in ('', lines.variant)
    group by lines.stage, lines.variant
),
newest_models as (
    select stage, variant, max_by(model_id, models.run_id) as model_id,
        max_by(struct_pack(warning := models.warning), models.run_id).warning as model_warning
    from current_wanted as wanted
    join current_models as models on models.fingerprint = wanted.item
    where stage in ('train', 'train-labeller', 'finetune')
    group by stage, variant
)
select
    stage, variant, coalesce(wanted, 0) as wanted, coalesce(done, 0) as done, coalesce(pending, 0) as pending,
    coalesce(rejected, 0) as rejected, last_run_id, last_status, last_finished_at,
    model_id, count_moved_samples, is_stale, model_warning
from lines
left join work using (stage, variant)
left join run_facts using (stage, variant)
left join newest_models using (stage, variant)
left join stale_models using (model_id)
left join stages using (stage)
order by position, stage, variant
