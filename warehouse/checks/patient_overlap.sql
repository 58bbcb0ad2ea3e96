-- patient that a model was trained on and is scored on
select * from patient_overlap
