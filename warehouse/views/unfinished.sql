-- stage x variant x item that is wanted and not done: the pending ones and those refused for good
select stage, variant, item, fingerprint, is_rejected from work_items where not is_done
