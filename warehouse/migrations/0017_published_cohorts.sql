-- Scored cohort of a published number. Null: the publication, as restated, does not say it.
alter table published_results add column cohort varchar;
update published_results set cohort = if(dataset = 'ct-rate-valid', 'scans-1564', 'scans-3630') where n is not null;
insert into published_results (model, dataset, metric, value, n, cohort, reference)
values
    ('Label-supervised, then CLIP', 'ct-rate-valid', 'auroc', .838, null, null, 'arXiv 2509.13175'),
    ('Label-supervised, then CLIP', 'rad-chestct', 'auroc', .773, null, null, 'arXiv 2509.13175'),
    ('RadFinder', 'ct-rate-valid', 'auroc', .838, null, null, 'arXiv 2603.02026'),
    ('RadFinder', 'rad-chestct', 'auroc', .770, null, null, 'arXiv 2603.02026'),
    ('RadFinder', 'ct-rate-valid', 'report_to_volume_recall_at_10', .315, 1493, 'pairs-1493', 'arXiv 2603.02026'),
    ('Disease-centric VLP', 'ct-rate-valid', 'auroc', .844, null, null, 'arXiv 2606.25546'),
    ('Disease-centric VLP', 'rad-chestct', 'auroc', .754, null, null, 'arXiv 2606.25546'),
    ('COLIPRI-CRM zero-shot', 'ct-rate-valid', 'auroc', .798, null, null, 'CLEAR-3D, reproduction'),
    ('ORACLE-CT, supervised', 'ct-rate-valid', 'auroc', .86, null, null, 'arXiv 2601.13385'),
    ('RevCT 0.3.2', 'ct-rate-valid', 'auroc', .8715, 3002, 'volumes-3002', 'RevCT model card'),
    ('RevCT 0.3.2', 'ct-rate-valid', 'f1', .6154, 3002, 'volumes-3002', 'RevCT model card'),
    ('fVLM, released weights', 'ct-rate-valid', 'auroc', .627, null, null, 'fVLM repository, a user''s report'),
    ('FlexiCT', 'ct-rate-valid', 'report_to_volume_recall_at_10', .462, null, null, 'FlexiCT'),
    ('VLM3D 2026 winner', 'vlm3d-hidden-test', 'auroc', .8764, null, 'hidden-test', 'VLM3D leaderboard'),
    ('VLM3D 2026 winner', 'vlm3d-hidden-test', 'f1', .6487, null, 'hidden-test', 'VLM3D leaderboard');
