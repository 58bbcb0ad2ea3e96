-- model x protocol on a data set and split, with the published results on the same ones
select *
from model_leaderboard
where dataset = $dataset and split = $split
