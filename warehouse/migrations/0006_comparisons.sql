-- How much more of a metric a model has than one made before it, paired: both have predicted the same items, and the same
-- patients are drawn for both. `scored_as` and `other_scored_as` are the fingerprints of the two evaluations.
create table comparisons (             -- model x other model x data set x split x both protocols x unit x label source x abnormality x metric
    model_id varchar, other_model_id varchar, dataset varchar, split varchar, protocol varchar, other_protocol varchar,
    unit varchar, label_source varchar, abnormality varchar, metric varchar, fingerprint varchar, scored_as varchar,
    other_scored_as varchar, difference double, ci_low double, ci_high double, bca_low double, bca_high double,
    p_value double, p_value_holm double, n bigint, count_patients bigint, run_id varchar, superseded_by_run varchar
);
