-- ingested source: its latest revision
select source, arg_max(revision, run_id) as revision
from current_sources
group by source
order by max(run_id) desc
