"""Scores of a model by subgroup of the patients: sex, age and the scanner's manufacturer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctclip_model.config import EvaluationConfig
from ctclip_model.evaluation import metrics
from warehouse import store

WITHOUT_CALIBRATION = EvaluationConfig(noise_draws=0)  # the interval of the calibration error takes most of the time
KINDS = ("sex", "age", "manufacturer")
MIN_PATIENTS = 20  # smaller groups are left out
MOST_GROUPS = 6  # a kind has this many at most


def score_subgroups(connection: duckdb.DuckDBPyConnection, key: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each kind and group: macro AUROC with its interval, over the labels that have both classes there.

    `key` names the model, data set, split, label source and label set. Groups of few patients are left out, and kinds
    with a single group.
    """
    table = connection.sql(store.load_sql(__package__, "subgroups"), params=dict(key)).to_arrow_table()
    rows = []
    for kind in KINDS:
        counts = pc.value_counts(table.group_by(["patient_id", kind]).aggregate([])[kind]).to_pylist()
        groups = sorted(
            (str(group["values"]) for group in sorted(counts, key=lambda group: -group["counts"])[:MOST_GROUPS]
             if group["values"] is not None and group["counts"] >= MIN_PATIENTS),
        )  # fmt: skip
        if len(groups) > 1:
            rows += [{"kind": kind, "group": group} | _score(table.filter(pc.field(kind) == group)) for group in groups]
    return rows


def _score(table: pa.Table) -> dict[str, Any]:
    items, rows = np.unique(table["item"].to_numpy(), return_inverse=True)
    names, columns = np.unique(table["abnormality"].to_numpy(), return_inverse=True)
    labels, probabilities = np.full((2, len(items), len(names)), np.nan)
    labels[rows, columns], probabilities[rows, columns] = table["value"].to_numpy(), table["probability"].to_numpy()
    patients = np.empty(len(items), object)
    patients[rows] = table["patient_id"].to_numpy()
    probabilities[np.isnan(labels)] = 0.0  # not read
    unknown = np.full(len(names), np.nan)
    scored = metrics.Scored(names.tolist(), labels, probabilities, unknown, "", patients.tolist())
    found = metrics.score(scored, WITHOUT_CALIBRATION)
    (macro,) = (row for row in found if row.abnormality == metrics.MACRO and row.metric == "auroc")
    return {
        "auroc": macro.value, "ci_low": macro.ci_low, "ci_high": macro.ci_high, "n": len(items),
        "count_patients": len(set(patients.tolist())),
    }  # fmt: skip
