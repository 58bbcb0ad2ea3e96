-- recipe x volume x labeller that a model may be fine-tuned on now, 'published' being a labeller too: labels by abnormality
with labelled as (
    select
        scan_id, labeller_id,
        -- gathered, then sorted: an aggregate in order costs twice
        map_from_entries(list_sort(list(struct_pack(k := abnormality, v := value)))) as labels
    from all_labels
    where value is not null
    group by scan_id, labeller_id
),
-- the text is of a scan, and made once for all of its volumes
described as (select *, labels::varchar as text_of_labels from labelled)
select
    samples.* exclude (fingerprint), labeller_id, labels,
    md5(concat_ws('|', samples.fingerprint, text_of_labels)) as fingerprint
from training_samples as samples
join described using (scan_id)
