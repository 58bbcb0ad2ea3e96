"""Metrics of probabilities against labels, per abnormality, macro and micro, at thresholds chosen beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import EvaluationConfig
from ctclip_model.errors import CheckpointError
from ctclip_model.evaluation.calibration import calibration_error
from ctclip_model.evaluation.intervals import Intervals, Support, add_mean, paired_differences, score_intervals
from ctclip_model.evaluation.jackknife import Estimate, Jackknife
from ctclip_model.evaluation.weighted import CALIBRATION, DECISION_METRICS, METRICS, Items, weighted_metrics

MACRO = "macro"  # mean over the labels that have both classes
MICRO = "micro"  # all items of the labels that have both classes, as one pool
PUBLISHED_THRESHOLDS = np.linspace(0.0, 1.0, 100)  # grid of the published rule

FEW_PATIENTS = 5
# Methods of intervals: of a metric, of a mean over labels, of the calibration error, and of a difference.
SCORE, MEAN, INVERSION, PAIRED = "score", "mover", "inversion", "paired-t"

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class MetricRow:
    """A row of the `metrics` table. The value is None for a label of one class, or of an unknown threshold."""

    abnormality: str  # a name, 'macro' or 'micro'
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    ci_method: str | None  # one of the methods below, or None without an interval
    has_few_patients: bool  # fewer than FEW_PATIENTS with, or without, the label: the interval may cover less
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
    ci_method: str | None
    has_few_patients: bool
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


def choose_thresholds(labels: Floats, probabilities: Floats, *, grid: Floats | None = None) -> Floats:
    """Thresholds (L,): the point of each ROC curve nearest to the corner (0, 1).

    `labels` (N, L) in {0, 1, NaN} and `probabilities` (N, L) in [0, 1] are of a split that is not scored. The points
    are the curve's own, so one for each probability of the label's items, or a `grid`. The published rule has a grid of
    100 values, which saturates when all probabilities are small. Of equally near points the largest wins. NaN for a
    label of a single class.
    """
    check_values(labels, probabilities)
    thresholds = np.full(labels.shape[1], np.nan)
    for index, (truth, scores) in enumerate(zip(labels.T, probabilities.T, strict=True)):
        if not {0.0, 1.0} <= set(truth):
            continue
        positive, negative = (np.sort(scores[truth == value]) for value in (1, 0))
        candidates = np.unique(scores[~np.isnan(truth)]) if grid is None else grid
        recall = 1 - np.searchsorted(positive, candidates) / len(positive)
        false_positive_rate = 1 - np.searchsorted(negative, candidates) / len(negative)
        distance = np.hypot(false_positive_rate, 1 - recall)
        thresholds[index] = candidates[::-1][np.argmin(distance[::-1])]
    return thresholds


def draw_choosers(patients: Sequence[str], config: EvaluationConfig) -> NDArray[np.bool_]:
    """A mask (N,) of the items of randomly drawn patients, who choose thresholds where no other split can."""
    names, columns = np.unique(np.asarray(patients), return_inverse=True)
    drawn = np.random.default_rng(config.seed).permutation(len(names))
    return drawn[columns] < round(len(names) * config.threshold_share)


def score(scored: Scored, config: EvaluationConfig) -> list[MetricRow]:
    """Every metric of every label, macro and micro, with intervals that count each patient once.

    Thresholds are fixed. Without groups of the jackknife in the configuration, intervals are None.
    """
    estimate, intervals = _estimate(scored, config)
    few = _have_few_patients(scored)
    rows = []
    for row, name in enumerate([*scored.names, MICRO, MACRO]):
        for column, metric in enumerate(METRICS):
            is_decision = metric in DECISION_METRICS
            n, n_positive = _counts(scored, name, row, is_decision)
            low, high = optional(intervals.low[row, column]), optional(intervals.high[row, column])
            rows.append(
                MetricRow(
                    abnormality=name,
                    metric=metric,
                    value=optional(estimate.value[row, column]),
                    ci_low=low,
                    ci_high=high,
                    ci_method=None if low is None else _method(name, metric),
                    has_few_patients=bool(few[row, column]),
                    n=n,
                    n_positive=n_positive,
                    threshold=optional(scored.thresholds[row]) if is_decision and row < len(scored.names) else None,
                    threshold_source=scored.threshold_source if is_decision else None,
                )
            )
    return rows


def compare(one: Scored, other: Scored, config: EvaluationConfig) -> list[ComparisonRow]:
    """The paired difference, `one` minus `other`, of every metric, on the same groups of patients.

    A difference of calibration errors has no interval and no p-value. Raises `ValueError` unless both have the same
    items and labels, in the same order.
    """
    if one.names != other.names or list(one.patients) != list(other.patients):
        raise ValueError("models are compared on the same items and labels")
    if not np.array_equal(one.labels, other.labels, equal_nan=True) or not np.array_equal(one.decided, other.decided):
        raise ValueError("models are compared on the same labels, and with thresholds chosen on the same patients")
    found = paired_differences(
        _estimate(one, config), _estimate(other, config), _are_same(one, other), config.confidence
    )
    for part in (found.low, found.high, found.p_value):
        part[:, METRICS.index(CALIBRATION)] = np.nan
    corrected = np.full_like(found.p_value, np.nan)
    corrected[: len(one.names)] = np.column_stack([holm(column) for column in found.p_value[: len(one.names)].T])
    few = _have_few_patients(one)
    return [
        ComparisonRow(
            abnormality=name,
            metric=metric,
            difference=optional(found.value[row, column]),
            ci_low=optional(found.low[row, column]),
            ci_high=optional(found.high[row, column]),
            ci_method=None if np.isnan(found.low[row, column]) else PAIRED,
            has_few_patients=bool(few[row, column]),
            p_value=optional(found.p_value[row, column]),
            p_value_holm=optional(corrected[row, column]),
            n=_counts(one, name, row, metric in DECISION_METRICS)[0],
            count_patients=_count_patients(one, row, metric in DECISION_METRICS),
        )
        for row, name in enumerate([*one.names, MICRO, MACRO])
        for column, metric in enumerate(METRICS)
    ]


def holm(p_values: Floats) -> Floats:
    """p-values (n,) corrected for n tests (Holm, Scand J Statist 1979). NaN stays NaN and counts as no test."""
    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected


def _estimate(scored: Scored, config: EvaluationConfig) -> tuple[Estimate, Intervals]:
    """Metrics (L + 2, metrics) of each label, their pool and their mean, and the intervals of them all."""
    jackknife = Jackknife.draw(scored.patients, config)
    labels = scored.items(jackknife.patients)
    rows = [*labels, Items.pool([items for items in labels if items.has_both_classes])]
    bins = config.calibration_bins
    estimate = jackknife.estimate(
        lambda weights: np.stack([weighted_metrics(row, weights, calibration_bins=bins) for row in rows], axis=1)
    )
    intervals = score_intervals(estimate, Support.of(rows), config.confidence)
    for row, items in enumerate(rows):
        if items.has_both_classes:
            index, (value, low, high) = (row, METRICS.index(CALIBRATION)), calibration_error(items, jackknife, config)
            estimate.value[index], intervals.low[index] = value, low
            intervals.high[index] = np.maximum(high, intervals.high[index])  # Wilson's end, where no gap is seen
    return add_mean(estimate, intervals, config.confidence)


def _method(name: str, metric: str) -> str:
    """The method of a metric's interval."""
    if name == MACRO:
        return MEAN
    return INVERSION if metric == CALIBRATION else SCORE


def _are_same(one: Scored, other: Scored) -> NDArray[np.bool_]:
    """A mask (L + 2, metrics) of the metrics in which two models cannot differ: they give or decide the same."""
    gives = (one.probabilities == other.probabilities) | np.isnan(one.labels)
    decides = ((one.probabilities >= one.thresholds) == (other.probabilities >= other.thresholds)) | ~one.decided
    by_metric = [decides if metric in DECISION_METRICS else gives for metric in METRICS]
    labels = np.stack([mask.all(axis=0) for mask in by_metric], axis=1)  # (L, metrics)
    return np.concatenate([labels, labels.all(axis=0, keepdims=True).repeat(2, axis=0)])


def _have_few_patients(scored: Scored) -> NDArray[np.bool_]:
    """A mask (L + 2, metrics) of the labels that fewer than FEW_PATIENTS counted patients have, or do not have.

    A pool counts the patients of all its labels. A mean has no patients of its own.
    """
    patients = np.unique(np.asarray(scored.patients), return_inverse=True)[1]
    by_kind = np.zeros((2, len(scored.names) + 2), bool)  # a row for ranking and probability, a row for decisions
    for is_decision in (False, True):
        for value in (1, 0):
            side = _counted(scored, is_decision) & (scored.labels == value)  # (N, L)
            rows = [*side.T, side[:, _have_both_classes(scored)].any(axis=1)]
            by_kind[int(is_decision), :-1] |= [len(np.unique(patients[row])) < FEW_PATIENTS for row in rows]
    return np.stack([by_kind[int(metric in DECISION_METRICS)] for metric in METRICS], axis=1)


def _have_both_classes(scored: Scored) -> NDArray[np.bool_]:
    return np.array([{0.0, 1.0} <= set(column) for column in scored.labels.T], bool)


def _counted(scored: Scored, is_decision: bool) -> NDArray[np.bool_]:
    """A mask (N, L) of the items that count for a metric."""
    return scored.decided if is_decision else ~np.isnan(scored.labels)


def _counts(scored: Scored, name: str, row: int, is_decision: bool) -> tuple[int, int | None]:
    """Counts of items and of positives: of a label, of items with any label (macro), or of item-label pairs (micro)."""
    known = _counted(scored, is_decision)
    if name == MACRO:
        return int(known.any(axis=1).sum()), None
    if name == MICRO:
        known = known & _have_both_classes(scored)
        return int(known.sum()), int((scored.labels[known] == 1).sum())
    return int(known[:, row].sum()), int((scored.labels[known[:, row], row] == 1).sum())


def _count_patients(scored: Scored, row: int, is_decision: bool) -> int:
    """The number of patients with an item that counts for a label, or for any label (macro and micro)."""
    known = _counted(scored, is_decision)
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
