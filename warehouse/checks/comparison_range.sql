-- comparison of a model with itself, or with an impossible interval, p-value or count, or a value outside its interval
select
    model_id, other_model_id, dataset, split, protocol, abnormality, metric, difference, ci_low, ci_high,
    p_value, p_value_holm, n
from changed_comparisons
where
    model_id = other_model_id or not difference between -1 and 1 or ci_low > ci_high or bca_low > bca_high
    or ci_method is not null and difference between ci_low and ci_high is not true
    or not p_value between 0 and 1 or not p_value_holm between p_value and 1 or n < 0
