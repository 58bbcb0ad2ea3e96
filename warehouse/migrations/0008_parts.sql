-- What a fingerprint that is wanted was made from, by name, so that a plan can say which part has moved; null where that
-- was not recorded yet.
alter table wanted add column parts map(varchar, varchar);
