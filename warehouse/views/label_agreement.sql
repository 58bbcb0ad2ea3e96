-- labeller x other labeller x split x abnormality: agreement of two sources of labels, in both directions. Published labels are always the other. Scans whose reports trained one of both are left out
with known as not materialized (
    select scan_id, abnormality, labeller_id, label_set, value = 1 as is_positive
    from all_labels
    where value is not null and is_training is not true
),
-- Blocks of 4,096 scans of one split. In its block a scan has a bit. The split is that of all_labels, here once a scan.
scans as (
    select scan_id, split, position // 4096 as block, (position % 4096)::integer as bit
    from (
        select
            scan_id, if(contains(scan_id, '_'), split_part(scan_id, '_', 1), 'external') as split,
            row_number() over (partition by split) - 1 as position
        from (select distinct scan_id from known)
    )
),
-- A source's answer to a finding, with its scans as bits. Two sources join by block, which is far faster than by scan.
answers as (
    select labeller_id, label_set, abnormality, is_positive, split, block, bitstring_agg(bit, 0, 4095) as bits
    from known
    join scans using (scan_id)
    group by all
),
paired as (
    select
        ours.labeller_id, theirs.labeller_id as other_id, label_set, split, abnormality,
        ours.is_positive as is_ours, theirs.is_positive as is_theirs, bit_count(ours.bits & theirs.bits) as n_common
    from answers as ours
    join answers as theirs using (label_set, abnormality, split, block)
    where theirs.labeller_id > ours.labeller_id
),
counted as (
    select
        labeller_id, other_id, label_set, split, abnormality, sum(n_common)::bigint as n,
        sum(if(is_ours, n_common, 0))::bigint as n_positive,
        sum(if(is_theirs, n_common, 0))::bigint as n_other_positive,
        sum(if(is_ours and not is_theirs, n_common, 0))::bigint as n_only_labeller,
        sum(if(is_theirs and not is_ours, n_common, 0))::bigint as n_only_other
    from paired
    group by all
    having n > 0
),
turned as (
    select * from counted where labeller_id <> 'published'
    union all by name
    select
        other_id as labeller_id, labeller_id as other_id, label_set, split, abnormality, n,
        n_other_positive as n_positive, n_positive as n_other_positive, n_only_other as n_only_labeller,
        n_only_labeller as n_only_other
    from counted
    where other_id <> 'published'
),
chance as (
    select
        *, (n - n_only_labeller - n_only_other) / n as agreement,
        (n_positive * n_other_positive + (n - n_positive) * (n - n_other_positive)) / (n * n::double) as expected
    from turned
)
select
    labeller_id, other_id, label_set, split, abnormality, n, agreement,
    if(expected < 1, (agreement - expected) / (1 - expected), null) as kappa,
    n_positive, n_other_positive, n_only_labeller, n_only_other,
    if(other_id = 'published', n_other_positive, null) as n_published_positive,
    if(other_id = 'published', n_only_other, null) as n_only_published
from chance
order by labeller_id, other_id, split, abnormality
