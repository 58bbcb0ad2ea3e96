-- patient that a model was trained on and is scored on
select * from patient_overlap as overlap_
semi join (
    select model_id from changed_model_samples
    union
    select model_id from changed_predictions
) as touched on overlap_.model_id is not distinct from touched.model_id
