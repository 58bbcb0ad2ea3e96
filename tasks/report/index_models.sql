-- model x data set x split: its page, and its macro AUROC over scans by its own protocol
with scores as (
    select model as model_id, dataset, split, auroc, auroc_ci_low as ci_low, auroc_ci_high as ci_high, n
    from model_leaderboard
    where not is_published and protocol not in (select protocol from named_protocols) and unit = 'scan' and label_source = 'published'
        and label_set = 'ct-rate-18'
),
pages as (
    select model_id, dataset, split, path, auroc, ci_low, ci_high, n
    from (
        from current_pages as pages
        -- A page by other labels stands in where there is none by the published ones. An older file lacks the column.
        qualify row_number() over (
            partition by model_id, dataset, split
            order by coalesce(to_json(pages) ->> '$.label_source', 'published') <> 'published', path
        ) = 1
    )
    full join scores using (model_id, dataset, split)
)
select
    model_id, kind, parent_model_id, created_at, duration_s, dataset, split, pages.path, auroc, ci_low, ci_high, n
from (from current_models where kind is distinct from 'labeller') as models
full join pages using (model_id)
order by created_at desc nulls last, model_id, dataset, split
