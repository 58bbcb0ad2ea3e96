-- one row a labelled sample with its latent; labels in the order of $names, null where unknown
select
    volume_name, scan_id, split, latent, latents.fingerprint as latent_fingerprint,
    [labels[name] for name in $names] as labels, samples.fingerprint
from labelled_samples as samples
join wanted_latents as latents on latents.kind = 'volume' and latents.item = samples.volume_name
where recipe_id = $recipe_id and labeller_id = $labels_of and model_id = $encoder_id
order by volume_name
