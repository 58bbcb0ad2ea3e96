-- model x protocol on a data set, beside the published results on CT-RATE
select *
from model_leaderboard
where dataset in ($dataset, 'ct-rate') and (protocol = 'published') = ($protocols = 'published')
