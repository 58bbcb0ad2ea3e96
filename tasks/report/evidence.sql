-- abnormality x is_found x rank: a scan with the label, its probability, and the shard of its first reconstruction.
-- Abnormalities are those of the highest, the middle and the lowest AUROC. Found scans have the highest probabilities,
-- missed ones the lowest
with scores as (
    select abnormality, max(value) filter (metric = 'auroc') as auroc, max(threshold) as threshold
    from current_metrics
    where model_id = $model_id and dataset = $dataset and split = $split and label_source = $label_source
        and label_set = $label_set and protocol not in (select protocol from named_protocols) and unit = 'scan'
        and list_contains($names, abnormality)
    group by abnormality
    having auroc is not null and max(threshold) is not null
        and not coalesce(bool_or(has_few_patients) filter (metric = 'auroc'), false)
),
chosen as (
    select *
    from scores
    qualify row_number() over (order by auroc desc, abnormality) in (1, count(*) over () // 2 + 1, count(*) over ())
),
first_volumes as (
    select scan_id, min(volume_name) as volume_name, count(*) as count_volumes
    from evaluation_samples
    where model_id = $encoder_id and dataset = $dataset and split = $split
    group by scan_id
),
positives as (
    select
        chosen.*, item, probability, volume_name, count_volumes, probability >= threshold as is_found,
        if(probability >= threshold, -probability, probability) as position
    from current_predictions as predictions
    join chosen using (abnormality)
    join (select scan_id, abnormality, value from all_labels where labeller_id = $label_source) as labels
        on labels.scan_id = predictions.item and labels.abnormality = predictions.abnormality
    join first_volumes on first_volumes.scan_id = predictions.item
    where model_id = $model_id and dataset = $dataset and predictions.split = $split and label_set = $label_set
        and protocol not in (select protocol from named_protocols) and unit = 'scan' and value = 1
)
select
    positives.* exclude (position), shard_path, row_index,
    row_number() over (partition by abnormality, is_found order by position, item) as rank
from positives
left join converted_volumes as shards
    on shards.volume_name = positives.volume_name and shards.recipe_id = $recipe_id
qualify rank <= $count
order by auroc desc, abnormality, is_found desc, position, item
