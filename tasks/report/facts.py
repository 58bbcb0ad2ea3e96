"""Facts of a report page: the warehouse's rows about one model on one split."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np

from ctclip_model.data.phantom import VISIBLE_ABNORMALITIES
from ctclip_model.evaluation.protocols import NAMED_PROTOCOLS
from ctclip_model.models.kinds import ModelKind
from tasks.labels.label_sources import DEFAULT_SOURCE, LabelSource
from tasks.models.find import ModelReference
from tasks.report.charts import Points
from tasks.report.evidence import find_evidence
from tasks.report.examples import find_examples
from tasks.report.render import OperatingPoints, PageFacts
from tasks.report.rows import Row, execute, read_rows
from tasks.report.subgroups import score_subgroups
from tasks.run.code_version import code_version
from tasks.settings import PHANTOM
from warehouse import store

KIND_NAMES = {
    ModelKind.ct_clip: "CT-CLIP", ModelKind.vocabfine: "VocabFine", ModelKind.lipro: "LiPro",
    ModelKind.external: "Encoder of another package",
}  # fmt: skip
PUBLISHED_MODEL = "CT-CLIP zero-shot"  # its macro AUROC is a line beside ours on the same data set
TASKS = {
    "report_to_volume_recall": "report to volume, recall at K",
    "volume_to_report_recall": "volume to report, recall at K",
    "volume_to_volume_map": "volume to volume, MAP at K",
    "volume_to_volume_jaccard": "volume to volume, Jaccard index at K",
}
MEDIAN_RANK = "_median_rank"  # last letters of a task without a K
MOST_POINTS = 60  # a slider has this many thresholds at most

_AGREEMENT = "select * from label_agreement where split = $split and other_id = $label_source"


def collect_facts(
    connection: duckdb.DuckDBPyConnection,
    data_root: Path,
    model: ModelReference,
    dataset: str,
    split: str,
    against: str | None = None,
    source: LabelSource = DEFAULT_SOURCE,
) -> PageFacts:
    """Collects everything that a page shows by one source of labels.

    `against` is the model of the paired differences on its first screen. Retrieval, projection and labellers are on the
    page by the published labels alone.
    """
    key = {
        "model_id": model.model_id, "dataset": dataset, "split": split, "label_source": source.name,
        "label_set": source.label_set.name,
    }  # fmt: skip
    scores = read_rows(connection, _sql("labels"), key)
    macro = [row for row in scores if row["abnormality"] == "macro"]
    comparisons = read_rows(connection, _sql("comparisons"), key)
    differences = read_rows(connection, _sql("against"), key | {"other_model_id": against}) if against else []
    retrieval = read_rows(connection, _sql("retrieval"), key) if source.is_default else []
    board = read_rows(connection, _sql("leaderboard"), key)
    printed = [row for row in board if row["is_published"]]
    evidence, evidence_note = find_evidence(connection, data_root, model, dataset, split, source)
    shared = {row["cohort"] for row in board if not row["is_published"]} & {row["cohort"] for row in printed} - {None}
    return PageFacts(
        title=f"{KIND_NAMES[model.kind]} {model.model_id} on {dataset}, {split}{_describe_source(source)}",
        origin=_describe_origin(connection, model),
        headline=[
            *_headline(macro),
            *_describe_difference(differences, against),
            *(_phantom_headline(scores, dataset) if source.label_set.is_built_in else []),
            *_count_scans(scores),
        ],
        leaderboard=[row for row in board if not row["is_published"] and row["protocol"] not in NAMED_PROTOCOLS],
        published=[row for row in board if row["cohort"] in shared],
        published_elsewhere=[row for row in printed if row["cohort"] not in shared],
        published_macro=next((row["auroc"] for row in printed if row["model"] == PUBLISHED_MODEL), None),
        subgroups=score_subgroups(connection, key),
        operating_points=_read_operating_points(connection, key),
        comparisons=comparisons,
        against=against or "",
        differences=[row for row in differences if row["abnormality"] != "macro"],
        labels=[row for row in scores if row["abnormality"] != "macro"],
        few_patients=[row["abnormality"] for row in scores if row["has_few_patients"]],
        threshold_sources=sorted({row["threshold_source"] for row in scores if row["threshold_source"]}),
        ci_methods=_list_methods(scores),
        comparison_methods=_list_methods([*comparisons, *differences]),
        curves={
            "ROC": _read_series(connection, _sql("curve"), key | {"curve": "roc"}),
            "precision and recall": _read_series(connection, _sql("curve"), key | {"curve": "pr"}),
            "calibration": _read_series(connection, _sql("calibration"), key),
        },
        training=_read_series(connection, _sql("loss"), {"model_id": model.model_id}),
        retrieval=arrange_retrieval(retrieval),
        examples=find_examples(connection, data_root, model, dataset, split) if retrieval else (),
        evidence=evidence,
        evidence_note=evidence_note,
        projection=execute(connection, _sql("projection"), key).fetchall() if source.is_default else [],
        labellers=read_rows(connection, "select * from labeller_scores", {}) if source.is_default else [],
        scored_labels="published labels" if source.is_default else f"labels {source.name}",
        agreement=read_rows(connection, _AGREEMENT, {"split": split, "label_source": source.name}),
        quality=read_rows(connection, _QUALITY, {}),
        rejects=read_rows(connection, _REJECTS, {}),
        provenance=_read_provenance(connection, key),
    )


def _sql(name: str) -> str:
    return store.load_sql(__package__, name)


def _describe_source(source: LabelSource) -> str:
    """The end of a page's title. Empty for the published labels."""
    return "" if source.is_default else f", by the labels {source.name}"


def _list_methods(rows: list[Row]) -> list[str]:
    """Methods of the rows' intervals, each once."""
    return list(dict.fromkeys(row["ci_method"] for row in rows if row["ci_method"] is not None))


def arrange_retrieval(rows: list[Row]) -> list[Row]:
    """A row for each task, with a column for each K, the median rank, and the number of queries."""
    arranged: dict[str, Row] = {}
    columns = dict.fromkeys(row["k"] for row in rows if not row["task"].endswith(MEDIAN_RANK))
    ranks = {row["task"].removesuffix(MEDIAN_RANK): row["value"] for row in rows if row["task"].endswith(MEDIAN_RANK)}
    for row in rows:
        if row["task"].endswith(MEDIAN_RANK):
            continue
        name = TASKS.get(row["task"], row["task"])
        task = arranged.setdefault(row["task"], {"task": name, "n": row["n"]} | columns)
        task["median_rank"] = ranks.get(row["task"].removesuffix("_recall"))
        task[row["k"]] = row["value"]
    return list(arranged.values())


def _describe_origin(connection: duckdb.DuckDBPyConnection, model: ModelReference) -> str:
    """A sentence about what the model was made from."""
    (row,) = read_rows(connection, _sql("model"), {"model_id": model.model_id})
    parent = f"Made from {row['parent_model_id']}. " if row["parent_model_id"] else ""
    if row["count_samples"] is None:
        return f"{parent}Preset {row['preset']}, from imported weights."
    revision = f", revision {row['revision']}" if row["revision"] else ""
    source = row["source"] or "this data root"
    return f"{parent}Preset {row['preset']}, trained on {row['count_samples']:,} samples of {source}{revision}."


def _describe_difference(differences: list[Row], against: str | None) -> list[tuple[str, str]]:
    """The difference in macro AUROC to the model that the page is set against."""
    macro = next((row for row in differences if row["abnormality"] == "macro"), None)
    if macro is None:
        return []
    interval = "" if macro["ci_low"] is None else f"95 % CI {macro['ci_low']:+.3f} to {macro['ci_high']:+.3f}, "
    paired = f"{interval}paired over {macro['count_patients']:,} patients"
    return [(f"{macro['difference']:+.3f}", f"macro AUROC against {against} ({paired})")]


def _phantom_headline(scores: list[Row], dataset: str) -> list[tuple[str, str]]:
    """The mean AUROC of the abnormalities that phantoms show, as the demonstration prints it. The others are chance."""
    seen = [row["auroc"] for row in scores if row["abnormality"] in VISIBLE_ABNORMALITIES and row["auroc"] is not None]
    if dataset != PHANTOM or not seen:
        return []
    return [(f"{sum(seen) / len(seen):.3f}", f"macro AUROC of the {len(seen)} abnormalities that phantoms show")]


def _count_scans(scores: list[Row]) -> list[tuple[str, str]]:
    return [(str(max((row["n"] for row in scores), default=0)), "scans scored")]


def _read_operating_points(connection: duckdb.DuckDBPyConnection, key: Row) -> dict[str, OperatingPoints]:
    """Thresholds of each abnormality with the sensitivity and specificity that they have, `MOST_POINTS` at most."""
    rows: dict[str, list[Row]] = {}
    for row in read_rows(connection, _sql("operating_points"), key):
        rows.setdefault(row["abnormality"], []).append(row)
    found = {}
    for name, points in rows.items():
        numbers = sorted({round(number) for number in np.linspace(0, len(points) - 1, MOST_POINTS)})
        shown = [(points[number]["threshold"], points[number]["sensitivity"], points[number]["specificity"])
                 for number in numbers]  # fmt: skip
        found[name] = OperatingPoints(shown, points[0]["chosen"], points[0]["n_positive"], points[0]["n"])
    return found


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
    (model,) = read_rows(connection, _sql("model"), key)
    runs = read_rows(connection, _sql("runs"), key)
    facts = [(name.replace("_", " "), str(value)) for name, value in model.items() if value is not None]
    facts += [(f"evaluation run {run['run_id']}", f"flow run {run['flow_run_id']}") for run in runs]
    return [*facts, ("page written by", f"code {code_version()}")]


def _read_series(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Row) -> dict[str, Points]:
    """Reads rows (name, x, y) as {name: points}."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name, x, y in execute(connection, sql, parameters).fetchall():
        series.setdefault(name, []).append((x, y))
    return dict(series)


_QUALITY = "select problem, count(*) as n from data_quality group by all order by all"
_REJECTS = "select stage, reason, count(*) as n from open_rejects group by all order by all"
