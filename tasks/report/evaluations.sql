-- data set x split of a model: the fingerprints of every evaluation and comparison that its page by $label_source shows
with scored as (
    select model_id, dataset, split, fingerprint from current_metrics where label_source in ($label_source, 'hand')
),
shown as (
    from scored
    union
    select model_id, dataset, split, fingerprint from model_comparisons where label_source = $label_source
    union
    select model_id, dataset, split, hand.fingerprint
    from scored
    cross join (select distinct fingerprint from current_metrics where label_source = 'hand') as hand
)
select dataset, split, string_agg(fingerprint, ',' order by fingerprint)
from shown
where model_id = $model_id
group by dataset, split
