-- a model's rules on a label set with all of their figures, by the fields of Cohort and then of DecisionRule
select
    dataset, split, protocol, label_source, run_id, count_patients, count_fitting,
    abnormality, threshold, slope, intercept, sensitivity, specificity, n, n_positive,
    sensitivity_low, sensitivity_high, specificity_low, specificity_high, brier_score, brier_calibrated, has_few_patients
from current_decisions
where label_set = $label_set and model_id = $model_id and weights_sha256 = $weights and list_contains($names, abnormality)
    and ($fingerprints is null or list_contains($fingerprints, fingerprint))
    and threshold is not null and sensitivity is not null and specificity is not null
