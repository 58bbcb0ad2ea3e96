-- pages show the scores by one source of labels
alter table pages add column label_source varchar default 'published';
