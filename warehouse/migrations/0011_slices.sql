-- Slices of the source that hold one value alone, and slices that repeat the one before.
alter table shard_volumes add column count_blank_slices integer;
alter table shard_volumes add column count_repeated_slices integer;
