-- Every table that stages write. Rows come from record files alone; a column that a record leaves out is null.
-- `fingerprint` = the inputs, configuration and stage version that a row was made from.
-- `superseded_by_run` is set by the publish: the run whose row for the same key replaced this one; null = current.
-- Rows are only ever added: the history of what can change stays, and `current_*` views show the latest.

create table volumes (                 -- a reconstruction, a version of its metadata or file
    volume_name varchar, fingerprint varchar, scan_id varchar, patient_id varchar, split varchar, reconstruction integer,
    storage varchar, path varchar, size_bytes bigint, sha256 varchar,
    spacing_x_mm double, spacing_y_mm double, spacing_z_mm double, rescale_slope double, rescale_intercept double,
    count_slices integer, count_rows integer, count_columns integer,
    manufacturer varchar, convolution_kernel varchar, patient_sex varchar, patient_age_years integer, study_date date,
    metadata map(varchar, varchar), is_withdrawn boolean, source varchar, revision varchar,
    run_id varchar, superseded_by_run varchar
);
create table reports (                 -- a scan, a version of its text
    scan_id varchar, fingerprint varchar, patient_id varchar, split varchar,
    clinical_information varchar, technique varchar, findings varchar, impression varchar, is_disputed boolean,
    is_withdrawn boolean, source varchar, revision varchar, run_id varchar, superseded_by_run varchar
);
create table published_labels (        -- scan x abnormality, a version of it
    scan_id varchar, abnormality varchar, fingerprint varchar, value tinyint, is_disputed boolean,
    is_withdrawn boolean, source varchar, revision varchar, run_id varchar, superseded_by_run varchar
);
create table hand_labels (             -- report x abnormality
    report_id varchar, abnormality varchar, fingerprint varchar, value tinyint, scan_id varchar, text_sha256 varchar,
    source varchar, run_id varchar, superseded_by_run varchar
);
create table exclusions (              -- volume x reason
    volume_name varchar, reason varchar, fingerprint varchar, detail varchar, is_withdrawn boolean,
    source varchar, revision varchar, run_id varchar, superseded_by_run varchar
);
create table sources (                 -- a revision of a source, as ingested
    source varchar, revision varchar, fingerprint varchar, storage varchar, kind varchar,
    count_volumes bigint, count_scans bigint, count_reports bigint,
    count_new bigint, count_changed bigint, count_withdrawn bigint, run_id varchar, superseded_by_run varchar
);
create table shards (                  -- a shard file
    shard_path varchar, recipe_id varchar, fingerprint varchar, size_bytes bigint, sha256 varchar,
    count_volumes integer, run_id varchar, superseded_by_run varchar
);
create table shard_volumes (           -- volume x recipe, a version of it
    volume_name varchar, recipe_id varchar, fingerprint varchar, shard_path varchar, row_index integer,
    source_sha256 varchar, crc32 bigint, hu_mean double, hu_std double, hu_min integer, hu_max integer,
    spacing_x_mm double, spacing_y_mm double, spacing_z_mm double, shape_in integer[], spacing_note varchar,
    run_id varchar, superseded_by_run varchar
);
create table labels (                  -- scan x abnormality x labeller, a version of it
    scan_id varchar, abnormality varchar, labeller_id varchar, fingerprint varchar,
    probability double, value tinyint, threshold double, run_id varchar, superseded_by_run varchar
);
create table models (                  -- a model folder
    model_id varchar, kind varchar, parent_model_id varchar, fingerprint varchar, preset varchar, config varchar,
    path varchar, recipe_id varchar, manifest_fingerprint varchar, count_samples bigint, source varchar, revision varchar,
    code_version varchar, weights_sha256 varchar, count_parameters bigint, logit_scale double, duration_s double, created_at timestamptz,
    run_id varchar, superseded_by_run varchar
);
create table model_samples (           -- model x training sample: what a model was trained on
    model_id varchar, sample_id varchar, fingerprint varchar, split varchar, run_id varchar, superseded_by_run varchar
);
create table training_steps (          -- model x step
    model_id varchar, step bigint, phase varchar, fingerprint varchar, samples bigint, loss double, learning_rate double,
    gradient_norm double, volumes_per_s double, data_wait_share double, memory_bytes bigint, validation_auroc double,
    run_id varchar, superseded_by_run varchar
);
create table latents (                 -- model x kind x item: kind 'volume' (a volume), 'report' (a scan) or 'prompt' (a text)
    model_id varchar, kind varchar, item varchar, fingerprint varchar, latent float[], run_id varchar,
    superseded_by_run varchar
);
create table predictions (             -- model x data set x split x protocol x unit x item x abnormality
    model_id varchar, dataset varchar, split varchar, protocol varchar, unit varchar, item varchar, abnormality varchar,
    fingerprint varchar, probability double, run_id varchar, superseded_by_run varchar
);
create table metrics (                 -- model x data set x split x protocol x unit x label source x abnormality or 'macro' x metric
    model_id varchar, dataset varchar, split varchar, protocol varchar, unit varchar, label_source varchar,
    abnormality varchar, metric varchar, fingerprint varchar, value double, ci_low double, ci_high double,
    n bigint, n_positive bigint, threshold double, threshold_source varchar, run_id varchar, superseded_by_run varchar
);
create table retrieval (               -- model x data set x split x task x K
    model_id varchar, dataset varchar, split varchar, task varchar, k integer, fingerprint varchar, value double,
    n bigint, run_id varchar, superseded_by_run varchar
);
create table curves (                  -- a point of a ROC or precision-recall curve
    model_id varchar, dataset varchar, split varchar, protocol varchar, unit varchar, label_source varchar,
    abnormality varchar, curve varchar, point integer, fingerprint varchar, x double, y double, threshold double,
    run_id varchar, superseded_by_run varchar
);
create table pages (                   -- an HTML report page: model x data set x split
    model_id varchar, dataset varchar, split varchar, fingerprint varchar, path varchar, size_bytes bigint,
    run_id varchar, superseded_by_run varchar
);
create table wanted (                  -- stage x variant x item: the fingerprint that a rerun would make
    stage varchar, variant varchar, item varchar, fingerprint varchar, is_withdrawn boolean,
    run_id varchar, superseded_by_run varchar
);
create table rejects (                 -- stage x variant x item x fingerprint: what failed and why
    stage varchar, variant varchar, item varchar, fingerprint varchar, reason varchar, detail varchar,
    is_permanent boolean, is_withdrawn boolean, rejected_at timestamptz, run_id varchar, superseded_by_run varchar
);
create table runs (                    -- stage run x status: one row when it starts, one when it ends
    run_id varchar, status varchar, stage varchar, variant varchar, flow_run_id varchar, host varchar,
    parameters varchar, code_version varchar, recorded_at timestamptz, duration_s double,
    count_done bigint, count_rejected bigint, detail varchar
);
create table published_results (       -- model x data set x metric, as printed in the literature
    model varchar, dataset varchar, metric varchar, value double, n bigint, reference varchar
);
create table record_files (            -- a record file that has been loaded, under the data root
    path varchar, table_name varchar, count_rows bigint, size_bytes bigint
);
create table view_files (              -- a view of this file and the checksum of its definition
    name varchar, sha256 varchar
);
