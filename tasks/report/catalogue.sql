-- fact of volumes x band or value: count of volumes. `position` orders the bands, and is null for other values
with bands(fact, position, label, low, high) as (
    values
        ('slice spacing', 1, 'below 0.75 mm', 0, 0.75), ('slice spacing', 2, '0.75 to 1 mm', 0.75, 1),
        ('slice spacing', 3, '1 to 1.5 mm', 1, 1.5), ('slice spacing', 4, '1.5 to 2.5 mm', 1.5, 2.5),
        ('slice spacing', 5, '2.5 to 4 mm', 2.5, 4), ('slice spacing', 6, '4 mm or more', 4, 'inf'::double),
        ('pixel spacing', 1, 'below 0.6 mm', 0, 0.6), ('pixel spacing', 2, '0.6 to 0.7 mm', 0.6, 0.7),
        ('pixel spacing', 3, '0.7 to 0.8 mm', 0.7, 0.8), ('pixel spacing', 4, '0.8 to 0.9 mm', 0.8, 0.9),
        ('pixel spacing', 5, '0.9 mm or more', 0.9, 'inf'::double),
        ('slices', 1, 'below 100', 0, 100), ('slices', 2, '100 to 199', 100, 200), ('slices', 3, '200 to 299', 200, 300),
        ('slices', 4, '300 to 399', 300, 400), ('slices', 5, '400 to 599', 400, 600),
        ('slices', 6, '600 or more', 600, 'inf'::double),
        ('age', 1, 'below 20 years', 0, 20), ('age', 2, '20 to 39', 20, 40), ('age', 3, '40 to 59', 40, 60),
        ('age', 4, '60 to 79', 60, 80), ('age', 5, '80 or more', 80, 'inf'::double)
),
facts as (
    select
        spacing_z_mm, spacing_x_mm, count_slices, patient_age_years, count(*) as count_volumes,
        coalesce(split, 'unknown') as split, coalesce(nullif(trim(manufacturer), ''), 'unknown') as manufacturer,
        case upper(trim(patient_sex)) when 'M' then 'male' when 'F' then 'female' when 'O' then 'other' else 'unknown' end
            as sex
    from current_volumes
    group by all
),
measured as (
    select unnest([
        {fact: 'slice spacing', value: spacing_z_mm}, {fact: 'pixel spacing', value: spacing_x_mm},
        {fact: 'slices', value: count_slices::double}, {fact: 'age', value: patient_age_years::double}
    ], recursive := true), count_volumes
    from facts
),
named as (
    select unnest([
        {fact: 'split', value: split}, {fact: 'manufacturer', value: manufacturer}, {fact: 'sex', value: sex}
    ], recursive := true), count_volumes
    from facts
)
select *
from (
    select measured.fact, position, coalesce(label, 'unknown') as value, sum(count_volumes)::bigint as count_volumes
    from measured
    left join bands on bands.fact = measured.fact and value >= low and value < high
    group by all
    union all
    select fact, null, value, sum(count_volumes)::bigint
    from named
    group by all
)
order by
    list_position(['manufacturer', 'slice spacing', 'slices', 'pixel spacing', 'sex', 'age', 'split'], fact),
    position nulls last, count_volumes desc, value
