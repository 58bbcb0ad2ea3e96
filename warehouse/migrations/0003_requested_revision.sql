-- sources.requested_revision: the branch, tag or commit of the Hub that was asked for; null for a folder.
-- sources.revision is the commit that it was then; the next ingest without a source asks for the same again.
alter table sources add column requested_revision varchar;
