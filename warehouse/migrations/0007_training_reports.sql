-- A labeller's labels of the reports that it was trained on say nothing of how well it reads: true for those, false for
-- the rest, null where nobody has recorded what it was trained on.
alter table labels add column is_training boolean;
