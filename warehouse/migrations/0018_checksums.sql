-- Statement of an object's content by a bucket that knows no SHA-256: md5:, etag: or time: (of the last change).
alter table volumes add column checksum varchar;
