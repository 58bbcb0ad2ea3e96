-- data set x split that has latents of a model: hashes of its latents and of the labels of a source, without and with the excluded volumes
with labelled as (
    select distinct scan_id, fingerprint from current_published_labels where $label_source = 'published'
    union all
    select distinct scan_id, fingerprint from current_labels where labeller_id = $label_source
)
select
    dataset, split,
    coalesce(md5(string_agg(concat_ws('|', volume_name, samples.fingerprint, labelled.fingerprint), ','
        order by volume_name) filter (not is_excluded)), '') as kept,
    md5(string_agg(concat_ws('|', volume_name, samples.fingerprint, labelled.fingerprint), ',' order by volume_name)) as everything,
    {
        latents: md5(string_agg(volume_name || samples.fingerprint, ',' order by volume_name) filter (not is_excluded)),
        labels: md5(string_agg(volume_name || labelled.fingerprint, ',' order by volume_name) filter (not is_excluded))
    } as kept_parts,
    {
        latents: md5(string_agg(volume_name || samples.fingerprint, ',' order by volume_name)),
        labels: md5(string_agg(volume_name || labelled.fingerprint, ',' order by volume_name))
    } as all_parts
from embedded_samples as samples
left join labelled using (scan_id)
where model_id = $model_id
group by dataset, split
having count(*) filter (not is_excluded) > 0
order by dataset, split
