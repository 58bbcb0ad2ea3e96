"""Metrics of probabilities against labels, per abnormality, macro and micro, at thresholds chosen beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import EvaluationConfig
from ctclip_model.errors import CheckpointError
from ctclip_model.evaluation.bootstrap import Resamples, Weights, holm
from ctclip_model.evaluation.weighted import DECISION_METRICS, METRICS, Items, weighted_metrics

MACRO = "macro"  # mean over the labels that have both classes
MICRO = "micro"  # all items of the labels that have both classes, as one pool
THRESHOLD_GRID = np.linspace(0.0, 1.0, 100)

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class MetricRow:
    """A row of the `metrics` table. The value is None for a label of one class, or of an unknown threshold."""

    abnormality: str  # a name, 'macro' or 'micro'
    metric: str
    value: float | None
    ci_low: float | None  # percentile interval
    ci_high: float | None
    bca_low: float | None
    bca_high: float | None
    n: int
    n_positive: int | None
    threshold: float | None
    threshold_source: str | None


@dataclass(frozen=True)
class ComparisonRow:
    """A row of the `comparisons` table: a metric of one model minus that of another, on the same patients."""

    abnormality: str
    metric: str
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    bca_low: float | None
    bca_high: float | None
    p_value: float | None
    p_value_holm: float | None  # corrected for the number of abnormalities, or None for macro and micro
    n: int
    count_patients: int


@dataclass(frozen=True)
class Scored:
    """Items to score, with their labels, probabilities and patients.

    `labels` (N, L) in {0, 1, NaN}, `probabilities` (N, L) in [0, 1], `thresholds` (L,), NaN where unknown. `is_decided`
    (N,) is False for items that chose the thresholds: they do not count for metrics of decisions. Raises `ValueError`
    for other values or shapes.
    """

    names: Sequence[str]
    labels: Floats
    probabilities: Floats
    thresholds: Floats
    threshold_source: str
    patients: Sequence[str]
    is_decided: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        check_values(self.labels, self.probabilities)
        if not len(self.names) == len(self.thresholds) == self.labels.shape[1]:
            raise ValueError(
                f"{len(self.names)} names and {len(self.thresholds)} thresholds for {self.labels.shape[1]} labels"
            )
        if len(self.patients) != len(self.labels):
            raise ValueError(f"{len(self.patients)} patients for {len(self.labels)} items")

    @property
    def decided(self) -> NDArray[np.bool_]:
        """A mask (N, L) of the items that count for metrics of decisions."""
        mask = np.ones(len(self.labels), bool) if self.is_decided is None else self.is_decided
        return mask[:, None] & ~np.isnan(self.labels) & ~np.isnan(self.thresholds)

    def items(self, patients: NDArray[np.int64]) -> list[Items]:
        """The known items of each label. `patients` (N,) are columns of weights."""
        known = ~np.isnan(self.labels)
        decisions = np.where(self.decided, self.probabilities >= self.thresholds, np.nan)
        return [
            Items(self.labels[rows, i] == 1, self.probabilities[rows, i], decisions[rows, i], patients[rows])
            for i, rows in enumerate(known.T)
        ]


def choose_thresholds(labels: Floats, probabilities: Floats) -> Floats:
    """Thresholds (L,) by the published rule: the point of the ROC curve nearest to the corner (0, 1).

    `labels` (N, L) in {0, 1, NaN} and `probabilities` (N, L) in [0, 1] are of a split that is not scored. The grid has
    100 values from 0 to 1. Of equally near ones the largest wins. NaN for a label of a single class.
    """
    check_values(labels, probabilities)
    thresholds = np.full(labels.shape[1], np.nan)
    for index, (truth, scores) in enumerate(zip(labels.T, probabilities.T, strict=True)):
        if not {0.0, 1.0} <= set(truth):
            continue
        decisions = scores >= THRESHOLD_GRID[:, None]  # (grid, N)
        recall = decisions[:, truth == 1].mean(axis=1)
        false_positive_rate = decisions[:, truth == 0].mean(axis=1)
        distance = np.hypot(false_positive_rate, 1 - recall)
        thresholds[index] = THRESHOLD_GRID[::-1][np.argmin(distance[::-1])]
    return thresholds


def draw_choosers(patients: Sequence[str], config: EvaluationConfig) -> NDArray[np.bool_]:
    """A mask (N,) of the items of randomly drawn patients, who choose thresholds where no other split can."""
    names, columns = np.unique(np.asarray(patients), return_inverse=True)
    drawn = np.random.default_rng(config.seed).permutation(len(names))
    return drawn[columns] < round(len(names) * config.threshold_share)


def score(scored: Scored, config: EvaluationConfig) -> list[MetricRow]:
    """Every metric of every label, macro and micro, with intervals by resampling the patients.

    Thresholds stay the same in each resample. Without resamples in the configuration, intervals are None.
    """
    resamples = Resamples.draw(scored.patients, config)
    estimate = resamples.estimate(partial(_values, scored, resamples.patients, config))
    percentile, bca = estimate.percentile_intervals(), estimate.bca_intervals()
    rows = []
    for row, name in enumerate([*scored.names, MACRO, MICRO]):
        for column, metric in enumerate(METRICS):
            is_decision = metric in DECISION_METRICS
            n, n_positive = _counts(scored, name, row, is_decision)
            rows.append(
                MetricRow(
                    abnormality=name,
                    metric=metric,
                    value=optional(estimate.value[row, column]),
                    ci_low=optional(percentile[0, row, column]),
                    ci_high=optional(percentile[1, row, column]),
                    bca_low=optional(bca[0, row, column]),
                    bca_high=optional(bca[1, row, column]),
                    n=n,
                    n_positive=n_positive,
                    threshold=optional(scored.thresholds[row]) if is_decision and row < len(scored.names) else None,
                    threshold_source=scored.threshold_source if is_decision else None,
                )
            )
    return rows


def compare(one: Scored, other: Scored, config: EvaluationConfig) -> list[ComparisonRow]:
    """The paired difference, `one` minus `other`, of every metric, with the same resamples of the patients.

    Raises `ValueError` unless both have the same items and labels, in the same order.
    """
    if one.names != other.names or list(one.patients) != list(other.patients):
        raise ValueError("models are compared on the same items and labels")
    if not np.array_equal(one.labels, other.labels, equal_nan=True) or not np.array_equal(one.decided, other.decided):
        raise ValueError("models are compared on the same labels, and with thresholds chosen on the same patients")
    resamples = Resamples.draw(one.patients, config)
    ours, theirs = (resamples.estimate(partial(_values, scored, resamples.patients, config)) for scored in (one, other))
    difference = ours - theirs
    percentile, bca, p_values = difference.percentile_intervals(), difference.bca_intervals(), difference.p_values()
    corrected = np.full_like(p_values, np.nan)
    corrected[: len(one.names)] = np.column_stack([holm(column) for column in p_values[: len(one.names)].T])
    return [
        ComparisonRow(
            abnormality=name,
            metric=metric,
            difference=optional(difference.value[row, column]),
            ci_low=optional(percentile[0, row, column]),
            ci_high=optional(percentile[1, row, column]),
            bca_low=optional(bca[0, row, column]),
            bca_high=optional(bca[1, row, column]),
            p_value=optional(p_values[row, column]),
            p_value_holm=optional(corrected[row, column]),
            n=_counts(one, name, row, metric in DECISION_METRICS)[0],
            count_patients=_count_patients(one, row, metric in DECISION_METRICS),
        )
        for row, name in enumerate([*one.names, MACRO, MICRO])
        for column, metric in enumerate(METRICS)
    ]


def _values(scored: Scored, patients: NDArray[np.int64], config: EvaluationConfig, weights: Weights) -> Floats:
    """Metrics (R, L + 2, metrics) of each label, their mean and their pool, under each of R weightings."""
    items = scored.items(patients)
    values = np.full((len(weights), len(items) + 2, len(METRICS)), np.nan)
    for index, one in enumerate(items):
        values[:, index] = weighted_metrics(one, weights, calibration_bins=config.calibration_bins)
    both = [one for one in items if one.has_both_classes]
    if both:
        values[:, -2] = _mean(values[:, :-2])
        values[:, -1] = weighted_metrics(Items.pool(both), weights, calibration_bins=config.calibration_bins)
    return values


def _mean(values: Floats) -> Floats:
    """The mean over the labels of (R, labels, metrics) that have a value. NaN without any."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _counts(scored: Scored, name: str, row: int, is_decision: bool) -> tuple[int, int | None]:
    """Counts of items and of positives: of a label, of items with any label (macro), or of item-label pairs (micro)."""
    known = scored.decided if is_decision else ~np.isnan(scored.labels)
    if name == MACRO:
        return int(known.any(axis=1).sum()), None
    if name == MICRO:
        known = known & [{0.0, 1.0} <= set(column) for column in scored.labels.T]
        return int(known.sum()), int((scored.labels[known] == 1).sum())
    return int(known[:, row].sum()), int((scored.labels[known[:, row], row] == 1).sum())


def _count_patients(scored: Scored, row: int, is_decision: bool) -> int:
    """The number of patients with an item that counts for a label, or for any label (macro and micro)."""
    known = scored.decided if is_decision else ~np.isnan(scored.labels)
    items = known[:, row] if row < len(scored.names) else known.any(axis=1)
    return len(np.unique(np.asarray(scored.patients)[items]))


def check_values(labels: Floats, probabilities: Floats) -> None:
    """Raises `ValueError` for labels that are not 0, 1 or NaN, probabilities outside [0, 1], or other shapes."""
    if labels.ndim != 2 or labels.shape != probabilities.shape:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape} are not both (N, L)")
    if not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
        raise ValueError("labels are 0, 1 or nan")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # nan fails as well
        raise ValueError("probabilities are in [0, 1]")


def require_probabilities(probabilities: Floats, model_id: str) -> None:
    """Raises `CheckpointError` for a model whose probabilities (N, L) are not numbers in [0, 1]."""
    is_good = ((probabilities >= 0) & (probabilities <= 1)).all(axis=1)  # False for nan
    if not is_good.all():
        raise CheckpointError(
            f"{model_id}: its probabilities of {(~is_good).sum()} of {len(probabilities)} items are not numbers in "
            "[0, 1]: the weights are damaged"
        )


def optional(value: float) -> float | None:
    """A finite number, or None."""
    return float(value) if np.isfinite(value) else None
