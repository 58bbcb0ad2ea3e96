-- Counts that a publish makes of other tables, so that no question has to: a comparison of every sample takes a second.
create table stale_counts (
    model_id varchar, preset varchar, recipe_id varchar,
    count_samples bigint, count_added bigint, count_changed bigint, count_removed bigint
);
