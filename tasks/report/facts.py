"""Facts of a report page: the warehouse's rows about one model on one split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from tasks.models.find import ModelReference
from tasks.report.charts import Points
from tasks.report.examples import find_examples
from tasks.report.render import PageFacts
from tasks.run.stage_run import code_version
from tasks.settings import PUBLISHED_LABELS
from warehouse import store

Row = dict[str, Any]

_AGREEMENT = "select * from label_agreement where split = $split and other_id = $published"


def collect_facts(
    connection: duckdb.DuckDBPyConnection, data_root: Path, model: ModelReference, dataset: str, split: str
) -> PageFacts:
    """Collects everything that a page shows."""
    key = {"model_id": model.model_id, "dataset": dataset, "split": split}
    scores = _read_rows(connection, _sql("labels"), key)
    macro = [row for row in scores if row["abnormality"] == "macro"]
    comparisons = _read_rows(connection, _sql("comparisons"), key)
    retrieval = _read_rows(connection, _sql("retrieval"), key)
    return PageFacts(
        title=f"{model.model_id} on {dataset}, {split}",
        headline=[*_headline(macro), (str(max((row["n"] for row in scores), default=0)), "scans scored")],
        leaderboard=_read_rows(connection, _sql("leaderboard"), key | {"protocols": "own"}),
        published=_read_rows(connection, _sql("leaderboard"), key | {"protocols": "published"}),
        comparisons=comparisons,
        labels=[row for row in scores if row["abnormality"] != "macro"],
        few_patients=[row["abnormality"] for row in scores if row["has_few_patients"]],
        threshold_sources=sorted({row["threshold_source"] for row in scores if row["threshold_source"]}),
        ci_methods=_list_methods(scores),
        comparison_methods=_list_methods(comparisons),
        curves={
            "ROC": _read_series(connection, _sql("curve"), key | {"curve": "roc"}),
            "precision and recall": _read_series(connection, _sql("curve"), key | {"curve": "pr"}),
            "calibration": _read_series(connection, _sql("calibration"), key),
        },
        training=_read_series(connection, _sql("loss"), {"model_id": model.model_id}),
        retrieval=retrieval,
        examples=find_examples(connection, data_root, model, dataset, split) if retrieval else (),
        projection=connection.execute(_sql("projection"), key).fetchall(),
        labellers=_read_rows(connection, "select * from labeller_scores", {}),
        agreement=_read_rows(connection, _AGREEMENT, {"split": split, "published": PUBLISHED_LABELS}),
        quality=_read_rows(connection, _QUALITY, {}),
        rejects=_read_rows(connection, _REJECTS, {}),
        provenance=_read_provenance(connection, key),
    )


def _sql(name: str) -> str:
    return store.load_sql(__package__, name)


def _list_methods(rows: list[Row]) -> list[str]:
    """Methods of the rows' intervals, each once."""
    return list(dict.fromkeys(row["ci_method"] for row in rows if row["ci_method"] is not None))


def _headline(macro: list[Row]) -> list[tuple[str, str]]:
    if not macro or macro[0]["auroc"] is None:
        return []
    row = macro[0]
    interval = "" if row["ci_low"] is None else f" (95 % CI {row['ci_low']:.3f} to {row['ci_high']:.3f})"
    figures = [(f"{row['auroc']:.3f}", f"macro AUROC{interval}")]
    if row["accuracy"] is not None:
        figures.append((f"{row['accuracy']:.3f}", "macro accuracy"))
    return figures


def _read_provenance(connection: duckdb.DuckDBPyConnection, key: Row) -> list[tuple[str, str]]:
    (model,) = _read_rows(connection, _sql("model"), key)
    runs = _read_rows(connection, _sql("runs"), key)
    facts = [(name.replace("_", " "), str(value)) for name, value in model.items() if value is not None]
    facts += [(f"evaluation run {run['run_id']}", f"flow run {run['flow_run_id']}") for run in runs]
    return [*facts, ("page written by", f"code {code_version()}")]


def _read_rows(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Row) -> list[Row]:
    used = {name: value for name, value in parameters.items() if f"${name}" in sql}
    answer = connection.execute(sql, used)
    columns = [column[0] for column in answer.description or ()]
    return [dict(zip(columns, row, strict=True)) for row in answer.fetchall()]


def _read_series(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Row) -> dict[str, Points]:
    """Reads rows (name, x, y) as {name: points}."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name, x, y in connection.execute(sql, parameters).fetchall():
        series.setdefault(name, []).append((x, y))
    return dict(series)


_QUALITY = "select problem, count(*) as n from data_quality group by all order by all"
_REJECTS = "select stage, reason, count(*) as n from open_rejects group by all order by all"
