-- data set x split x protocol x unit x label source: macro scores of the weights of $model_id, the best cohort first
select
    board.dataset, board.split, board.protocol, board.unit, board.label_source, board.n,
    board.auroc, board.auroc_ci_low, board.auroc_ci_high, board.weighted_f1, board.accuracy
from model_leaderboard as board
join current_models as models on models.model_id = board.model and models.weights_sha256 = $weights
where board.model = $model_id and not board.is_published and board.label_set = $label_set
order by board.dataset <> 'ct-rate', board.split <> 'valid', board.dataset, board.split, board.protocol,
    board.unit, board.label_source, board.n
