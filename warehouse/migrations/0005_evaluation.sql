-- `ci_low` and `ci_high` are percentile intervals, `bca_*` bias-corrected and accelerated ones, of the same resamples.
alter table metrics add column bca_low double;
alter table metrics add column bca_high double;
-- Retrieval is of a protocol and a unit like all else: 'published' keeps a query in its own gallery.
alter table retrieval add column protocol varchar;
alter table retrieval add column unit varchar;
create table projections (             -- model x data set x split x unit x item: its latent on a plane, by t-SNE
    model_id varchar, dataset varchar, split varchar, protocol varchar, unit varchar, item varchar, fingerprint varchar,
    x double, y double, count_items bigint, count_all bigint, run_id varchar, superseded_by_run varchar
);
