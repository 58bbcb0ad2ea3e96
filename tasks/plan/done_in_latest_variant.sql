-- item that is done in the stage's latest variant other than the given one
with latest as (
    select variant
    from current_wanted
    where stage = $stage and variant <> $variant
    group by variant
    order by max(run_id) desc
    limit 1
)
select item, variant, fingerprint from done where stage = $stage and variant in (from latest)
