-- The file that an imported model was made of; null where the model was trained here. `source` and `revision` say where
-- the file came from, and, of a trained model, what data it saw.
alter table models add column source_sha256 varchar;
