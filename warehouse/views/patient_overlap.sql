-- model x patient that was trained on and belongs to the valid split, or is scored as held out. Must be empty
with trained as (
    select distinct model_id, split, regexp_extract(sample_id, '^(train|valid)_[0-9]+') as patient_id
    from current_model_samples
),
scored as (
    select distinct model_id, regexp_extract(item, '^(train|valid)_[0-9]+') as patient_id
    from current_predictions
    where split <> 'train'
)
select model_id, patient_id, 'trained on the valid split' as problem
from trained
where split = 'valid' or patient_id like 'valid%'
union
select trained.model_id, trained.patient_id, 'scored as held out'
from trained
join scored using (model_id, patient_id)
where trained.patient_id <> ''
