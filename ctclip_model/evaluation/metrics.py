"""How well probabilities match labels: per abnormality and macro, at thresholds that were chosen elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

MACRO = "macro"
THRESHOLD_GRID = np.linspace(0.0, 1.0, 100)
CURVE_POINTS = 200  # at most, for each curve

Floats = NDArray[np.floating]

# (labels, probabilities) -> value
RANKING_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "auroc": roc_auc_score,
    "average_precision": average_precision_score,
}
# (labels, decisions) -> value
DECISION_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "f1": lambda labels, decisions: f1_score(labels, decisions, zero_division=0),
    "weighted_f1": lambda labels, decisions: f1_score(labels, decisions, average="weighted", zero_division=0),
    "accuracy": accuracy_score,
    "precision": lambda labels, decisions: precision_score(labels, decisions, zero_division=0),
    "recall": recall_score,
    "specificity": lambda labels, decisions: recall_score(labels, decisions, pos_label=0),
}


@dataclass(frozen=True)
class MetricRow:
    """One value of the `metrics` table; None where the label has one class, or its threshold is unknown."""

    abnormality: str  # or 'macro'
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    n_positive: int | None
    threshold: float | None
    threshold_source: str | None


@dataclass(frozen=True)
class CurveRow:
    """One point of the `curves` table: 'roc' is (1 - specificity, recall), 'pr' is (recall, precision)."""

    abnormality: str
    curve: str
    point: int
    x: float
    y: float
    threshold: float | None  # None at the end that no probability reaches


def choose_thresholds(labels: Floats, probabilities: Floats) -> Floats:
    """The threshold of each label whose ROC point lies nearest to the corner (0, 1), by the published rule.

    `labels` (N, L) in {0, 1, nan}, `probabilities` (N, L) in [0, 1]: of a split that is not scored. The grid is 100
    values from 0 to 1; of equally near ones the largest wins. Returns (L,), nan where a label has a single class.
    """
    labels, probabilities = _checked(labels, probabilities)
    thresholds = np.full(labels.shape[1], np.nan)
    for index in range(labels.shape[1]):
        truth, scores = _known(labels[:, index], probabilities[:, index])
        if not _has_both_classes(truth):
            continue
        decisions = scores >= THRESHOLD_GRID[:, None]  # (grid, n)
        recall = decisions[:, truth == 1].mean(axis=1)
        false_positive_rate = decisions[:, truth == 0].mean(axis=1)
        distance = np.hypot(false_positive_rate, 1 - recall)
        thresholds[index] = THRESHOLD_GRID[::-1][np.argmin(distance[::-1])]
    return thresholds


def score(
    labels: Floats,
    probabilities: Floats,
    names: Sequence[str],
    *,
    thresholds: Floats,
    threshold_source: str,
    patients: Sequence[str] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> list[MetricRow]:
    """Every metric of every label, and their macro averages over the labels that have both classes.

    `labels` (N, L) in {0, 1, nan}, `probabilities` (N, L) in [0, 1], `thresholds` (L,). With `patients` (N,) AUROC
    carries a 95 % interval, a percentile bootstrap over patients. Raises ValueError for shapes or values out of range.
    """
    labels, probabilities = _checked(labels, probabilities)
    if not len(names) == len(thresholds) == labels.shape[1]:
        raise ValueError(f"{len(names)} names and {len(thresholds)} thresholds for {labels.shape[1]} labels")
    values = np.array([_values(labels[:, i], probabilities[:, i], thresholds[i]) for i in range(len(names))])
    intervals = np.full((len(names) + 1, 2), np.nan)
    if patients is not None and len(labels):
        intervals = auroc_intervals(labels, probabilities, patients, resamples=resamples, seed=seed)
    known = ~np.isnan(labels)
    rows = []
    for row, name in enumerate([*names, MACRO]):
        for column, metric in enumerate([*RANKING_METRICS, *DECISION_METRICS]):
            is_macro = name == MACRO
            value = _mean(values[:, column]) if is_macro else values[row, column]
            is_decision = metric in DECISION_METRICS
            low, high = intervals[row] if metric == "auroc" else (np.nan, np.nan)
            rows.append(
                MetricRow(
                    abnormality=name,
                    metric=metric,
                    value=_optional(value),
                    ci_low=_optional(low),
                    ci_high=_optional(high),
                    n=int(known.any(axis=1).sum() if is_macro else known[:, row].sum()),
                    n_positive=None if is_macro else int(np.nansum(labels[:, row])),
                    threshold=_optional(thresholds[row]) if is_decision and not is_macro else None,
                    threshold_source=threshold_source if is_decision else None,
                )
            )
    return rows


def auroc_intervals(
    labels: Floats, probabilities: Floats, patients: Sequence[str], *, resamples: int, seed: int
) -> Floats:
    """95 % percentile intervals of AUROC, (L + 1, 2): one a label and the macro's, by resampling whole patients.

    Drawing a patient k times weighs all its rows by k, so a resample is a row of weights and AUROC the weighted
    Mann-Whitney statistic. A resample in which a label has a single class does not count for that label.
    """
    labels, probabilities = _checked(labels, probabilities)
    patient, inverse = np.unique(np.asarray(patients), return_inverse=True)
    draws = np.random.default_rng(seed).integers(len(patient), size=(resamples, len(patient)))
    counts = np.stack([np.bincount(draw, minlength=len(patient)) for draw in draws])
    weights = counts[:, inverse].astype(np.float64)  # (resamples, N)
    aurocs = np.full((resamples, labels.shape[1] + 1), np.nan)
    for index in range(labels.shape[1]):
        known = ~np.isnan(labels[:, index])
        if _has_both_classes(labels[known, index]):
            aurocs[:, index] = weighted_auroc(labels[known, index], probabilities[known, index], weights[:, known])
    aurocs[:, -1] = [_mean(resample) for resample in aurocs[:, :-1]]
    intervals = [
        np.percentile(column[~np.isnan(column)], [2.5, 97.5]) if _any(column) else [np.nan] * 2 for column in aurocs.T
    ]
    return np.array(intervals)


def weighted_auroc(labels: Floats, scores: Floats, weights: Floats) -> Floats:
    """AUROC (R,) of one label under each of R weightings of its items; nan where a class has no weight.

    `labels` and `scores` (n,), `weights` (R, n). A tie counts half, as in the Mann-Whitney statistic.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)  # of each run of equal scores
    sorted_weights, is_positive = weights[:, order], labels[order] == 1
    positive = np.add.reduceat(sorted_weights * is_positive, starts, axis=1)  # (R, distinct scores)
    negative = np.add.reduceat(sorted_weights * ~is_positive, starts, axis=1)
    beaten = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.divide((positive * beaten).sum(axis=1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def curves(labels: Floats, probabilities: Floats, names: Sequence[str]) -> list[CurveRow]:
    """The ROC and precision-recall curves of the labels with both classes, thinned to `CURVE_POINTS` points each."""
    labels, probabilities = _checked(labels, probabilities)
    rows = []
    for index, name in enumerate(names):
        truth, scores = _known(labels[:, index], probabilities[:, index])
        if not _has_both_classes(truth):
            continue
        rows += _thinned(name, "roc", *roc_curve(truth, scores))
        precision, recall, thresholds = precision_recall_curve(truth, scores)
        rows += _thinned(name, "pr", recall, precision, np.append(thresholds, np.inf))
    return rows


def _thinned(name: str, curve: str, x: Floats, y: Floats, thresholds: Floats) -> list[CurveRow]:
    kept = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).round().astype(int))
    return [
        CurveRow(name, curve, point, float(x[i]), float(y[i]), _optional(thresholds[i])) for point, i in enumerate(kept)
    ]


def _values(labels: Floats, probabilities: Floats, threshold: float) -> list[float]:
    """Every metric of one label, in the order of the two dictionaries."""
    truth, scores = _known(labels, probabilities)
    if not _has_both_classes(truth):
        return [np.nan] * (len(RANKING_METRICS) + len(DECISION_METRICS))
    ranking = [metric(truth, scores) for metric in RANKING_METRICS.values()]
    if np.isnan(threshold):
        return ranking + [np.nan] * len(DECISION_METRICS)
    decisions = (scores >= threshold).astype(int)
    return ranking + [metric(truth, decisions) for metric in DECISION_METRICS.values()]


def _checked(labels: Floats, probabilities: Floats) -> tuple[Floats, Floats]:
    labels, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if labels.ndim != 2 or labels.shape != probabilities.shape:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape} are not both (N, L)")
    if not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
        raise ValueError("labels are 0, 1 or nan")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # nan fails as well
        raise ValueError("probabilities are in [0, 1]")
    return labels, probabilities


def _known(labels: Floats, probabilities: Floats) -> tuple[Floats, Floats]:
    known = ~np.isnan(labels)
    return labels[known].astype(int), probabilities[known]


def _has_both_classes(labels: Floats) -> bool:
    return len(labels) > 0 and labels.min() != labels.max()


def _any(values: Floats) -> bool:
    return not np.isnan(values).all()


def _mean(values: Floats) -> float:
    return float(np.nanmean(values)) if _any(values) else np.nan


def _optional(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
