-- recipe x volume x labeller that a model may be fine-tuned on now, 'published' being a labeller too: labels by abnormality
with labelled as (
    select
        scan_id, labeller_id,
        map_from_entries(list(struct_pack(k := abnormality, v := value) order by abnormality)) as labels
    from all_labels
    where value is not null
    group by scan_id, labeller_id
)
select
    samples.* exclude (fingerprint), labeller_id, labels,
    md5(concat_ws('|', samples.fingerprint, labels::varchar)) as fingerprint
from training_samples as samples
join labelled using (scan_id)
