-- data root: counts of its data and models
select
    (select count(*) from current_volumes) as volumes,
    (select count(distinct scan_id) from current_volumes) as scans,
    (select count(distinct patient_id) from current_volumes) as patients,
    (select count(*) from current_reports) as reports,
    (select count(*) from current_models where kind is distinct from 'labeller') as models
