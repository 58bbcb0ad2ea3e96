"""Comparisons of two models on the items that both have predicted, paired by patient."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from ctclip_model.evaluation import metrics
from tasks.evaluation.comparisons import Comparison
from tasks.evaluation.evaluations import CONFIG, choose_names
from tasks.evaluation.samples import load_labels, stack_labels
from tasks.evaluation.score import UNDECIDED, Rows
from tasks.labels.label_sources import LabelSource, find_label_source
from tasks.models.find import ModelReference
from warehouse import store


@dataclass(frozen=True)
class ScoredModel:
    """Predictions of one of the two models."""

    items: list[str]
    scored: metrics.Scored  # rows in the order of `items`

    @property
    def decided(self) -> set[str]:
        """Items that count for decisions: those of patients who did not choose the thresholds."""
        mask = self.scored.is_decided
        return {item for row, item in enumerate(self.items) if mask is None or mask[row]}

    def restrict(self, items: set[str], decided: set[str], is_unknown: np.ndarray) -> metrics.Scored:
        """Restricts the predictions to `items`.

        Only the `decided` items count for decisions. Labels with `is_unknown` (labels,) lose their threshold.
        """
        rows = [row for row, item in enumerate(self.items) if item in items]
        return dataclasses.replace(
            self.scored,
            labels=self.scored.labels[rows],
            probabilities=self.scored.probabilities[rows],
            patients=[self.scored.patients[row] for row in rows],
            thresholds=np.where(is_unknown, np.nan, self.scored.thresholds),
            is_decided=np.array([self.items[row] in decided for row in rows], bool),
        )


def score_comparison(data_root: Path, model: ModelReference, comparison: Comparison) -> Rows:
    """Scores the differences between two models and returns the rows of `comparisons`."""
    source = find_label_source(data_root, comparison.label_source)
    with store.read(data_root) as connection:
        model_scores = _load_scored(connection, comparison, source, model.model_id, comparison.protocol)
        other_scores = _load_scored(
            connection, comparison, source, comparison.other_model_id, comparison.other_protocol
        )
    shared = set(model_scores.items) & set(other_scores.items)
    decided = model_scores.decided & other_scores.decided
    is_unknown = np.isnan(model_scores.scored.thresholds) | np.isnan(other_scores.scored.thresholds)
    differences = metrics.compare(
        model_scores.restrict(shared, decided, is_unknown), other_scores.restrict(shared, decided, is_unknown), CONFIG
    )
    common = {"model_id": model.model_id, "fingerprint": comparison.fingerprint}
    common |= dataclasses.asdict(comparison)
    return [common | dataclasses.asdict(row) for row in differences]


def _load_scored(
    connection: duckdb.DuckDBPyConnection, comparison: Comparison, source: LabelSource, model_id: str, protocol: str
) -> ScoredModel:
    labels = choose_names(comparison.dataset, source.label_set)
    names = list(labels.names)
    key = {
        "model_id": model_id, "protocol": protocol, "dataset": comparison.dataset, "split": comparison.split,
        "unit": comparison.unit,
    }  # fmt: skip
    chosen_rows = key | {"names": names, "label_set": source.label_set.name}
    rows = connection.execute(store.load_sql(__package__, "predictions"), chosen_rows).fetchall()
    items, scans, patients, probabilities = (list(column) for column in zip(*rows, strict=True))
    chosen = connection.execute(
        store.load_sql(__package__, "thresholds"), key | {"label_source": source.name}
    ).fetchall()
    threshold_of = {name: threshold for name, threshold, _ in chosen}
    source_of = {name: source for name, _, source in chosen}
    thresholds, chosen_on = np.array([threshold_of[name] for name in names], float), source_of[names[0]]
    is_decided = ~metrics.draw_choosers(patients, CONFIG) if chosen_on.endswith(UNDECIDED) else None
    truth = labels.merge(stack_labels(load_labels(connection, source), scans, len(source.label_set)))
    scored = metrics.Scored(names, truth, np.array(probabilities), thresholds, chosen_on, patients, is_decided)
    return ScoredModel(items, scored)
