create table decisions (               -- model x data set x split x abnormality
    model_id varchar, dataset varchar, split varchar, protocol varchar, unit varchar, fingerprint varchar,
    label_source varchar, weights_sha256 varchar, abnormality varchar, threshold double, slope double, intercept double,
    sensitivity double, sensitivity_low double, sensitivity_high double,
    specificity double, specificity_low double, specificity_high double,
    brier_score double, brier_calibrated double, n bigint, n_positive bigint, has_few_patients boolean,
    count_patients bigint, count_fitting bigint, run_id varchar, superseded_by_run varchar
);
