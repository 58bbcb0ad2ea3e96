-- model x protocol on a data set and split, with the published results on the same ones, by one source of labels
select *
from model_leaderboard
where dataset = $dataset and split = $split and label_source = $label_source and label_set = $label_set
