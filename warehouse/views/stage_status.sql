-- stage x variant: work done and left, the latest run, and for `train` how far the newest model's samples have moved
with work as (
    select
        stage, variant, count(*) as wanted, count(*) filter (is_done) as done,
        count(*) filter (not is_done and not is_rejected) as pending, count(*) filter (is_rejected) as rejected
    from work_items
    group by stage, variant
),
lines as (
    select stage, variant from work
    union
    select distinct stage, variant from runs
    where variant is not null or stage not in (select stage from work)
),
latest_runs as (
    select
        lines.stage, lines.variant, runs.run_id,
        -- a run has a row for its start and one for its end
        arg_max(runs.status, (runs.status <> 'running')::integer) as status,
        max(runs.recorded_at) filter (runs.status <> 'running') as finished_at
    from lines
    join runs on runs.stage = lines.stage and (runs.variant is null or runs.variant is not distinct from lines.variant)
    group by lines.stage, lines.variant, runs.run_id
),
run_facts as (
    select
        stage, variant, max(run_id) as last_run_id, arg_max(status, run_id) as last_status,
        max(finished_at) as last_finished_at
    from latest_runs
    group by stage, variant
),
newest_models as (
    select
        stage, variant, max_by(model_id, models.run_id) as model_id
    from current_wanted as wanted
    join current_models as models on models.fingerprint = wanted.item
    where stage = 'train'
    group by stage, variant
)
select
    lines.stage, lines.variant, coalesce(wanted, 0) as wanted, coalesce(done, 0) as done,
    coalesce(pending, 0) as pending, coalesce(rejected, 0) as rejected,
    last_run_id, last_status, last_finished_at,
    newest_models.model_id, stale.count_moved_samples, stale.is_stale
from lines
left join work on work.stage = lines.stage and work.variant = lines.variant
left join run_facts on run_facts.stage = lines.stage and run_facts.variant is not distinct from lines.variant
left join newest_models on newest_models.stage = lines.stage and newest_models.variant = lines.variant
left join stale_models as stale on stale.model_id = newest_models.model_id
order by
    list_position(
        ['ingest', 'download', 'convert', 'label', 'train-labeller', 'train', 'finetune', 'embed', 'evaluate', 'report'],
        lines.stage
    ),
    lines.stage, lines.variant
