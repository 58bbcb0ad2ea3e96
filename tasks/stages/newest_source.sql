-- the latest completed ingest: source, storage and fingerprint
select source, storage, fingerprint
from current_sources
semi join (from runs where status = 'completed') using (run_id)
order by run_id desc
limit 1
