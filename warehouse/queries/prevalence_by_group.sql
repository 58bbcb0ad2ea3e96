-- published label x manufacturer x sex x age band: prevalence over scans
with people as (
    select
        scan_id, any_value(manufacturer) as manufacturer, any_value(patient_sex) as patient_sex,
        any_value(patient_age_years) as age_years
    from current_volumes
    group by scan_id
)
select
    abnormality, manufacturer, patient_sex,
    format('{0:02d}-{1:02d}', age_years // 20 * 20, age_years // 20 * 20 + 19) as age_band,
    count(*) as n, count(*) filter (value = 1) as n_positive, n_positive / n as prevalence
from current_published_labels
join people using (scan_id)
where value is not null
group by all
order by all
