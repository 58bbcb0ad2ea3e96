-- data set x split of a model: the fingerprints of every evaluation and comparison that its page shows
with shown as (
    select model_id, dataset, split, fingerprint from current_metrics
    where label_source in ('published', 'hand')
    union
    select model_id, dataset, split, fingerprint from model_comparisons where label_source = 'published'
    union
    select model_id, dataset, split, hand.fingerprint
    from (from current_metrics where label_source in ('published', 'hand'))
    cross join (select distinct fingerprint from current_metrics where label_source = 'hand') as hand
)
select dataset, split, string_agg(fingerprint, ',' order by fingerprint)
from shown
where model_id = ?
group by dataset, split
