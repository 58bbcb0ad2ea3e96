-- point of a curve x abnormality
select abnormality, x, y
from current_curves
where model_id = $model_id and dataset = $dataset and split = $split and curve = $curve
    and protocol not in (select protocol from named_protocols) and unit = 'scan' and label_source = $label_source
order by abnormality, point
