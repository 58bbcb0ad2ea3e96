-- latent that is missing, not of length 1, or not of the same number of dimensions as the model's others
with measured as (
    select
        model_id, kind, item, len(latent) as dimensions, sqrt(list_dot_product(latent, latent)) as norm
    from current_latents
    semi join changed_latents as changed on current_latents.model_id is not distinct from changed.model_id
)
select * from measured
where norm is null or abs(norm - 1) > 1e-3
union all
select measured.* from measured
join (
    select model_id, mode(dimensions) as usual
    from measured
    group by model_id
    having min(dimensions) < max(dimensions)
) as models using (model_id)
where dimensions <> usual
