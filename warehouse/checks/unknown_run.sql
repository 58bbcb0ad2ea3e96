-- a run that left records but no row at status 'running'
with records as (
    select distinct 'volumes' as table_name, run_id from volumes
    union all select distinct 'reports', run_id from reports
    union all select distinct 'published_labels', run_id from published_labels
    union all select distinct 'hand_labels', run_id from hand_labels
    union all select distinct 'exclusions', run_id from exclusions
    union all select distinct 'sources', run_id from sources
    union all select distinct 'shards', run_id from shards
    union all select distinct 'shard_volumes', run_id from shard_volumes
    union all select distinct 'labels', run_id from labels
    union all select distinct 'models', run_id from models
    union all select distinct 'model_samples', run_id from model_samples
    union all select distinct 'training_steps', run_id from training_steps
    union all select distinct 'latents', run_id from latents
    union all select distinct 'predictions', run_id from predictions
    union all select distinct 'metrics', run_id from metrics
    union all select distinct 'retrieval', run_id from retrieval
    union all select distinct 'curves', run_id from curves
    union all select distinct 'comparisons', run_id from comparisons
    union all select distinct 'projections', run_id from projections
    union all select distinct 'pages', run_id from pages
    union all select distinct 'wanted', run_id from wanted
    union all select distinct 'rejects', run_id from rejects
)
select table_name, run_id
from records
anti join (select run_id from runs where status = 'running') as started using (run_id)
