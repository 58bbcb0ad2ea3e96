-- model with a recipe and recorded samples: number of samples that moved since its training
select
    *,
    count_added + count_changed + count_removed as count_moved_samples,
    count_moved_samples / count_samples as moved_share,
    count_moved_samples > 0 as is_stale
from stale_counts
