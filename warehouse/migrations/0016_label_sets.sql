create table label_sets (              -- label set x finding
    label_set varchar, position integer, finding varchar, prompt_present varchar, prompt_absent varchar,
    fingerprint varchar, is_withdrawn boolean, run_id varchar, superseded_by_run varchar
);
create table label_sources (           -- a source of imported labels
    label_source varchar, label_set varchar, fingerprint varchar, file_name varchar, sha256 varchar,
    count_scans bigint, count_labels bigint, count_rejected bigint, run_id varchar, superseded_by_run varchar
);
-- Set that an imported label belongs to. Null: a labeller read the report, for the built-in set.
alter table labels add column label_set varchar;
-- A scan that the next import of the same name no longer has.
alter table labels add column is_withdrawn boolean;
-- Set of the scored findings. Rows and record files without it are of the built-in set.
alter table metrics add column label_set varchar default 'ct-rate-18';
alter table curves add column label_set varchar default 'ct-rate-18';
alter table predictions add column label_set varchar default 'ct-rate-18';
alter table comparisons add column label_set varchar default 'ct-rate-18';
alter table decisions add column label_set varchar default 'ct-rate-18';
