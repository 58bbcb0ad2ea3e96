-- stage x variant x item that a rerun would do: wanted, not done with that fingerprint, not refused for good with it
select stage, variant, item, fingerprint from work_items where not is_done and not is_rejected
