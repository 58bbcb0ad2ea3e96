"""Which pages are due, and what stands on one: the warehouse's rows about one evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ctclip_model.config import VERSIONS, fingerprint
from ctclip_model.files import fsync
from tasks.models import ModelReference
from tasks.page import PageFacts, render_page
from tasks.runs import StageRun, code_version
from warehouse import store

Row = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """One page to write: the evaluations of a model on a data set's split."""

    dataset: str
    split: str
    fingerprint: str

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.split}"


def list_pages(data_root: Path, model: ModelReference) -> dict[str, Page]:
    """The pages that a model can have, by key; a page is due again when any of its evaluation's rows moved."""
    with store.read(data_root) as connection:
        rows = connection.execute(
            "select dataset, split, string_agg(distinct fingerprint, ',' order by fingerprint) from current_metrics "
            "where model_id = ? group by dataset, split",
            [model.model_id],
        ).fetchall()
    pages = [Page(dataset, split, fingerprint(VERSIONS["report"], marks)) for dataset, split, marks in rows]
    return {page.key: page for page in pages}


def make_page(run: StageRun, model: ModelReference, page: Page) -> Path:
    """Writes one page, whole or not at all, records it, and returns its path."""
    with store.read(run.data_root) as connection:
        html = render_page(collect_facts(connection, model, page))
    path = run.data_root / "reports" / f"{model.model_id}-{page.dataset}-{page.split}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(html)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync(path.parent)
    run.record(
        "pages",
        [
            {
                "model_id": model.model_id, "dataset": page.dataset, "split": page.split,
                "fingerprint": page.fingerprint, "path": str(path.relative_to(run.data_root)),
                "size_bytes": path.stat().st_size,
            }
        ],
    )  # fmt: skip
    run.count_done += 1
    return path


def collect_facts(connection: duckdb.DuckDBPyConnection, model: ModelReference, page: Page) -> PageFacts:
    """Everything that a page says, from the warehouse."""
    key = {"model_id": model.model_id, "dataset": page.dataset, "split": page.split}
    labels = _rows(connection, _LABELS, key)
    macro = [row for row in labels if row["abnormality"] == "macro"]
    by_label = [row for row in labels if row["abnormality"] != "macro"]
    retrieval = _rows(connection, _RETRIEVAL, key)
    return PageFacts(
        title=f"{model.model_id} on {page.dataset}, {page.split}",
        headline=[*_headline(macro), (str(max((row["n"] for row in labels), default=0)), "scans scored")],
        leaderboard=_rows(connection, "select * from model_leaderboard where dataset in ($dataset, 'ct-rate')", key),
        labels=by_label,
        roc=_series(connection, _ROC, key),
        training=_series(connection, _LOSS, {"model_id": model.model_id}),
        retrieval=retrieval,
        agreement=_rows(connection, "select * from label_agreement where split = $split", {"split": page.split}),
        quality=_rows(connection, "select problem, count(*) as n from data_quality group by all order by all", {}),
        rejects=_rows(connection, _REJECTS, {}),
        provenance=_provenance(connection, model, page),
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


def _provenance(connection: duckdb.DuckDBPyConnection, model: ModelReference, page: Page) -> list[tuple[str, str]]:
    (row,) = _rows(connection, _MODEL, {"model_id": model.model_id})
    runs = _rows(connection, _RUNS, {"model_id": model.model_id, "dataset": page.dataset, "split": page.split})
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
_ROC = """
select abnormality, x, y
from current_curves
where model_id = $model_id and dataset = $dataset and split = $split and curve = 'roc'
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
