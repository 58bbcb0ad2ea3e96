-- recipe x volume x labeller: volume to fine-tune a model on, with its labels. 'published' is a labeller too
with labelled as (
    select
        scan_id, labeller_id,
        -- Sorted after the aggregate, since an ordered aggregate takes twice the time.
        map_from_entries(list_sort(list(struct_pack(k := abnormality, v := value)))) as labels
    from all_labels
    where value is not null
    group by scan_id, labeller_id
),
-- The text belongs to a scan, and is made once for all of its volumes.
described as (select *, labels::varchar as text_of_labels from labelled)
select
    samples.* exclude (fingerprint), labeller_id, labels,
    md5(concat_ws('|', samples.fingerprint, text_of_labels)) as fingerprint
from training_samples as samples
join described using (scan_id)
