-- Tokens of a text beyond the limit of its reader, which does not see them. Null in rows of earlier versions.
alter table latents add column count_cut_tokens integer;
alter table labels add column count_cut_tokens integer;
-- Training reports of which a part is beyond the model's limit.
alter table models add column count_cut_texts integer;
