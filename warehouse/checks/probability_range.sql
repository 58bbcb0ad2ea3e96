-- probability outside [0, 1]
select 'labels' as table_name, labeller_id as made_by, scan_id as item, abnormality, probability
from changed_labels
where not probability between 0 and 1
union all
select 'predictions', model_id, item, abnormality, probability
from changed_predictions
where not probability between 0 and 1
