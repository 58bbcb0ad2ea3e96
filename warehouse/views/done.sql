-- stage x variant x item x fingerprint: finished work that no later run has superseded
select distinct 'convert' as stage, recipe_id as variant, volume_name as item, fingerprint from current_shard_volumes
union all
-- Imported labels are from no stage. They alone have a file.
select distinct 'label', labeller_id, scan_id, fingerprint from current_labels
where label_set is null or labeller_id not in (select label_source from current_label_sources where file_name is not null)
union all
-- A model is found by its training's fingerprint, so it counts for every training stage that wants it.
select distinct stage, variant, item, wanted.fingerprint
from current_wanted as wanted
join current_models as models on models.fingerprint = wanted.item
where stage in (select stage from stages where trains)
union all
select distinct 'embed', model_id, kind || ':' || item, fingerprint from current_latents
union all
select distinct
    'evaluate', model_id,
    concat_ws('/', dataset, split, protocol, unit)
    || if(label_source not in ('published', 'hand'), ' by ' || label_source, ''),
    fingerprint
from current_metrics
union all
select distinct 'evaluate', model_id, concat_ws('/', dataset, split, protocol, unit), fingerprint
from current_retrieval
where protocol in (select protocol from named_protocols where is_retrieval)
union all
select distinct
    'evaluate', model_id,
    concat_ws('/', dataset, split, protocol, unit) || ' against ' || concat_ws('/', other_model_id, other_protocol)
    || if(label_source <> 'published', ' by ' || label_source, ''),
    fingerprint
from current_comparisons
union all
select distinct
    'report', model_id,
    concat_ws('/', dataset, split) || if(label_source <> 'published', ' by ' || label_source, ''), fingerprint
from current_pages
