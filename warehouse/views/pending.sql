-- stage x variant x item that a rerun would do: wanted, not done and not permanently rejected with its fingerprint
select stage, variant, item, fingerprint from work_items where not is_done and not is_rejected
