-- Orientation that a volume's header gives, for the comparison with the metadata.
alter table shard_volumes add column header_orientation varchar;
