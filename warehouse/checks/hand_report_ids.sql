-- hand-labelled report without the prefix hand:, which could be taken for a patient of CT-RATE
select distinct report_id from changed_hand_labels where report_id not like 'hand:%'
union all
select distinct item from changed_predictions where unit = 'report' and item not like 'hand:%'
