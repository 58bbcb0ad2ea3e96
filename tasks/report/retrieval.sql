-- retrieval task x K
select task, k, value, n
from current_retrieval
where model_id = $model_id and dataset = $dataset and split = $split and protocol not in (select protocol from named_protocols) and unit = 'scan'
order by task, k
