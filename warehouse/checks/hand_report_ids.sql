-- a hand-labelled report whose name could be taken for a patient of CT-RATE: it must begin with hand:
select distinct report_id from current_hand_labels where report_id not like 'hand:%'
union all
select distinct item from current_predictions where unit = 'report' and item not like 'hand:%'
