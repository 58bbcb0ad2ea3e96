-- source: its latest revision that was ingested up to the run $run_id
select source, arg_max(revision, run_id) as revision
from sources
where run_id <= $run_id
group by source
order by source
