-- Score of a training on held-out samples beside its baselines, and a warning where it beats none or not all of them.
-- Labels carry the warning of their labeller.
alter table models add column held_out varchar;
alter table models add column warning varchar;
alter table labels add column labeller_warning varchar;
