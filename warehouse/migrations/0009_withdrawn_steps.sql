-- A model that is trained again may take fewer steps than before.
alter table training_steps add column is_withdrawn boolean;
