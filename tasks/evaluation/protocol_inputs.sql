-- data set x named protocol that has latents of a model: hashes of its latents and of the labels of a source
with labelled as (
    select distinct scan_id, fingerprint from current_published_labels where $label_source = 'published'
    union all
    select distinct scan_id, fingerprint from current_labels where labeller_id = $label_source
)
select
    dataset, protocol,
    md5(string_agg(concat_ws('|', volume_name, item, samples.fingerprint, labelled.fingerprint), ','
        order by volume_name)) as content,
    {
        latents: md5(string_agg(volume_name || samples.fingerprint, ',' order by volume_name)),
        labels: md5(string_agg(volume_name || labelled.fingerprint, ',' order by volume_name))
    } as parts
from embedded_samples as samples
join protocol_volumes using (volume_name, scan_id)
left join labelled using (scan_id)
where model_id = $model_id and list_contains($protocols, protocol)
group by dataset, protocol
order by dataset, protocol
