-- stage x variant; the variant comes last, where a narrow screen folds it; the view stage_status has more columns
select
    stage, done, pending, rejected, coalesce(last_status, 'never run') as "last run",
    strftime(last_finished_at::timestamp, '%m-%d %H:%M') as "at (UTC)", variant
from stage_status
