-- note on the ingested data: a sentence for a person
with splits as (
    select split, count(*) as count_volumes, count(size_bytes) as count_files from current_volumes group by split
)
select format('{} of {} volumes of the {} split have a file in their source', count_files, count_volumes, split) as note
from splits
where count_files < count_volumes
union all
select format('there is no volume of the {} split', split)
from (values ('train'), ('valid')) as ct_rate(split)
where split not in (select split from splits) and exists (from splits where split in ('train', 'valid'))
union all
select 'there is no volume yet: run `ctclip ingest --source …`'
where not exists (from splits)
union all
select format(
    '{} volumes are not LPS by header or metadata: see data_quality and `ctclip ingest --orientation`',
    count(distinct item)
)
from data_quality
where problem in ('orientation_not_lps', 'orientation_unknown')
having count(*) > 0
