-- phase x one of 100 stretches of a training: mean loss, because the loss of single steps is noisy
with numbered as (
    select phase, samples, loss, ntile(100) over (partition by phase order by step) as stretch
    from current_training_steps
    where model_id = $model_id
)
select phase, max(samples) as samples, avg(loss) as loss
from numbered
group by phase, stretch
order by phase desc, samples
