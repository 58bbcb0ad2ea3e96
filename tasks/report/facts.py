"""What stands on a page: the warehouse's rows about one evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from tasks.models.find import ModelReference
from tasks.report.examples import find_examples
from tasks.report.render import PageFacts
from tasks.run.stage_run import code_version

Row = dict[str, Any]


def collect_facts(
    connection: duckdb.DuckDBPyConnection, data_root: Path, model: ModelReference, dataset: str, split: str
) -> PageFacts:
    """Everything that a page says, from the warehouse."""
    key = {"model_id": model.model_id, "dataset": dataset, "split": split}
    labels = _rows(connection, _LABELS, key)
    macro = [row for row in labels if row["abnormality"] == "macro"]
    by_label = [row for row in labels if row["abnormality"] != "macro"]
    retrieval = _rows(connection, _RETRIEVAL, key)
    return PageFacts(
        title=f"{model.model_id} on {dataset}, {split}",
        headline=[*_headline(macro), (str(max((row["n"] for row in labels), default=0)), "scans scored")],
        leaderboard=_rows(connection, _LEADERBOARD, key | {"protocols": "own"}),
        published=_rows(connection, _LEADERBOARD, key | {"protocols": "published"}),
        comparisons=_rows(connection, _COMPARISONS, key),
        labels=by_label,
        curves={
            "ROC": _series(connection, _CURVE, key | {"curve": "roc"}),
            "precision and recall": _series(connection, _CURVE, key | {"curve": "pr"}),
            "calibration": _series(connection, _CALIBRATION, key),
        },
        training=_series(connection, _LOSS, {"model_id": model.model_id}),
        retrieval=retrieval,
        examples=find_examples(connection, data_root, model, dataset, split) if retrieval else (),
        projection=connection.execute(_PROJECTION, key).fetchall(),
        labellers=_rows(connection, "select * from labeller_scores", {}),
        agreement=_rows(connection, "select * from label_agreement where split = $split", {"split": split}),
        quality=_rows(connection, "select problem, count(*) as n from data_quality group by all order by all", {}),
        rejects=_rows(connection, _REJECTS, {}),
        provenance=_provenance(connection, key),
    )


def _headline(macro: list[Row]) -> list[tuple[str, str]]:
    if not macro or macro[0]["auroc"] is None:
        return []
    row = macro[0]
    interval = "" if row["ci_low"] is None else f" (95 % {row['ci_low']:.3f} to {row['ci_high']:.3f})"
    figures = [(f"{row['auroc']:.3f}", f"macro AUROC{interval}")]
    if row["accuracy"] is not None:
        figures.append((f"{row['accuracy']:.3f}", "macro accuracy"))
    return figures


def _provenance(connection: duckdb.DuckDBPyConnection, key: Row) -> list[tuple[str, str]]:
    (row,) = _rows(connection, _MODEL, key)
    runs = _rows(connection, _RUNS, key)
    facts = [(name.replace("_", " "), str(value)) for name, value in row.items() if value is not None]
    facts += [(f"evaluation run {one['run_id']}", f"flow run {one['flow_run_id']}") for one in runs]
    return [*facts, ("page written by", f"code {code_version()}")]


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, parameters: dict[str, Any]) -> list[Row]:
    used = {name: value for name, value in parameters.items() if f"${name}" in sql}
    answer = connection.execute(sql, used)
    columns = [column[0] for column in answer.description or ()]
    return [dict(zip(columns, row, strict=True)) for row in answer.fetchall()]


def _series(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: dict[str, Any]
) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for name, x, y in connection.execute(sql, parameters).fetchall():
        series.setdefault(name, []).append((x, y))
    return series


_LABELS = """
pivot (
    select abnormality, metric, value, max(n) over label as n, max(n_positive) over label as n_positive,
        max(ci_low) filter (metric = 'auroc') over label as ci_low,
        max(ci_high) filter (metric = 'auroc') over label as ci_high
    from current_metrics
    where model_id = $model_id and dataset = $dataset and split = $split and label_source = 'published'
        and abnormality <> 'micro' and protocol <> 'published' and unit = 'scan'
    window label as (partition by abnormality)
)
on metric in ('auroc', 'average_precision', 'f1', 'weighted_f1', 'accuracy', 'precision')
using max(value)
group by abnormality, n, n_positive, ci_low, ci_high
order by auroc desc nulls last
"""
# only what the published way scored stands beside what is printed
_LEADERBOARD = """
select *
from model_leaderboard
where dataset in ($dataset, 'ct-rate') and (protocol = 'published') = ($protocols = 'published')
"""
_COMPARISONS = """
select
    other_model_id, other_protocol, max(difference) filter (abnormality = 'macro') as difference,
    max(ci_low) filter (abnormality = 'macro') as ci_low, max(ci_high) filter (abnormality = 'macro') as ci_high,
    max(p_value) filter (abnormality = 'macro') as p_value,
    count(*) filter (p_value_holm < 0.05 and difference > 0) as count_better,
    count(*) filter (p_value_holm < 0.05 and difference < 0) as count_worse, max(count_patients) as count_patients
from model_comparisons
where model_id = $model_id and dataset = $dataset and split = $split and unit = 'scan' and metric = 'auroc'
group by other_model_id, other_protocol
order by difference
"""
_CURVE = """
select abnormality, x, y
from current_curves
where model_id = $model_id and dataset = $dataset and split = $split and curve = $curve
    and protocol <> 'published' and unit = 'scan'
order by abnormality, point
"""
# the mean of about a hundred stretches of the run: single steps are noise
_LOSS = """
with numbered as (
    select phase, samples, loss, ntile(100) over (partition by phase order by step) as stretch
    from current_training_steps
    where model_id = $model_id
)
select phase, max(samples) as samples, avg(loss) as loss
from numbered
group by phase, stretch
order by phase desc, samples
"""
# ten equal stretches of probability: what was predicted in the mean, and what share has the label
_CALIBRATION = """
select predictions.abnormality, avg(probability) as predicted, avg(value) as observed
from current_predictions as predictions
join current_published_labels as labels
    on labels.scan_id = predictions.item and labels.abnormality = predictions.abnormality
where model_id = $model_id and dataset = $dataset and predictions.split = $split and protocol <> 'published'
    and unit = 'scan' and value is not null
group by predictions.abnormality, least(floor(probability * 10), 9)
order by predictions.abnormality, predicted
"""
_PROJECTION = """
with labels as (select scan_id, sum(value) as count_labels from current_published_labels group by scan_id)
select x, y, coalesce(count_labels, 0)
from current_projections as projections
left join current_volumes as volumes on volumes.volume_name = projections.item
left join labels on labels.scan_id = coalesce(volumes.scan_id, projections.item)
where model_id = $model_id and dataset = $dataset and projections.split = $split
order by item
"""
_REJECTS = "select stage, reason, count(*) as n from open_rejects group by all order by all"
_RETRIEVAL = """
select task, k, value, n
from current_retrieval
where model_id = $model_id and dataset = $dataset and split = $split and protocol <> 'published' and unit = 'scan'
order by task, k
"""
_MODEL = """
select model_id, kind, parent_model_id, preset, recipe_id, source, revision, manifest_fingerprint, count_samples,
    count_parameters, code_version, weights_sha256, created_at, round(duration_s, 1) as training_s
from current_models
where model_id = $model_id
"""
_RUNS = """
select distinct runs.run_id, runs.flow_run_id
from current_metrics
join runs using (run_id)
where model_id = $model_id and dataset = $dataset and split = $split and status = 'running'
"""
