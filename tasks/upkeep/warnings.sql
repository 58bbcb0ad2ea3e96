-- model that has learnt little: its training did not beat its baselines, or an evaluation finds no more than chance
with trainings as (
    -- read through JSON, since a warehouse of an older version lacks the column until its next publish
    select model_id, run_id, to_json(models) ->> '$.warning' as warning from current_models as models
),
evaluations as (
    select model_id, run_id, format(
        'is no better than chance on {} {}, protocol {}, by {}: macro AUROC {:.3f} ({:.3f} to {:.3f})',
        dataset, coalesce(split, 'without splits'), protocol, unit, value, ci_low, ci_high
    ) as warning
    from current_metrics
    where metric = 'auroc' and abnormality = 'macro' and label_source <> 'hand' and ci_low <= 0.5
)
select concat_ws(' ', model_id, warning)
from (from trainings union all from evaluations)
where warning is not null and coalesce($model_id, model_id) = model_id
order by run_id, model_id, warning
