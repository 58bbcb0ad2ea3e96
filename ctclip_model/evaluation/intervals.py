"""Intervals of metrics in [0, 1] that cover with few patients, of their means, and of differences of two models.

The variance of a metric is the jackknife's over patients. With few patients it is noisy, and it is 0 for a perfect
value. So it is compared with the variance V(x) that a simple model gives at a true value x:

- AUROC: Hanley and McNeil's, symmetric in both classes (Newcombe, Stat Med 2006, method 5).
- F1: hits are a share of hits, misses and false alarms, and F1 is a function of that share.
- Other metrics: a share, x (1 - x) / n. For average precision n is the number of positives (Boyd, ECML 2013).

The interval holds every x with (value - x)² <= q² c V(x). The scale c is the ratio of the jackknife's variance to
V(value). It is drawn towards 1 the fewer patients carry the jackknife's variance, and is never below the ratio. With
c = 1 this is Wilson's interval of a share. The quantile q is Student's for AUROC, whose variance depends on the shape
of the scores, and the normal one otherwise. `benchmarks/bench_coverage.py` measures the coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from ctclip_model.evaluation.jackknife import Estimate
from ctclip_model.evaluation.weighted import METRICS, Items

PRIOR_CARRIERS = 4.0  # patients that the model's variance counts for, beside those that carry the jackknife's
LOST_CARRIERS = 2.0  # a correlation's distance from 1 grows by this number per patient that carries the variance
HALVINGS = 60  # times that the stretch with an end of an interval is halved

Floats = NDArray[np.floating]
Variance = Callable[[Floats, Floats, Floats], Floats]  # V(x; first count, second count)


@dataclass(frozen=True)
class Support:
    """Patients under each metric, arrays (rows, metrics).

    `first` and `second` are effective counts for the variance. `patients` counts those of the rarer side.
    """

    first: Floats
    second: Floats
    patients: Floats

    @staticmethod
    def of(rows: list[Items]) -> Support:
        """The support of each row of items, for every metric."""
        counts = np.array([[_count_patients(items, metric) for metric in METRICS] for items in rows], float)
        return Support(*np.moveaxis(counts.reshape(len(rows), len(METRICS), 3), 2, 0))


@dataclass(frozen=True)
class Intervals:
    """Ends (...) of intervals, NaN where there is none, and the standard errors and degrees of freedom behind them."""

    low: Floats
    high: Floats
    error: Floats
    freedom: Floats


def score_intervals(estimate: Estimate, support: Support, confidence: float) -> Intervals:
    """Intervals (rows, metrics) of each row's metrics. An interval holds its value.

    A metric without a value, or that no patient supports, has none.
    """
    ends = np.full((4, *estimate.value.shape), np.nan)
    if not len(estimate.deviations):
        return Intervals(*ends)
    for column, metric in enumerate(METRICS):
        own = Estimate(estimate.value[:, column], estimate.deviations[:, :, column])
        counts = (support.first[:, column], support.second[:, column])
        known = ~np.isnan(own.value) & (support.patients[:, column] > 0)
        if not known.any():
            continue
        own = Estimate(own.value[known], own.deviations[:, known])
        first, second = (count[known] for count in counts)
        freedom = np.full(len(first), np.inf)
        if metric == "auroc":
            freedom = _degrees_of_freedom(own, support.patients[known, column])
        low, high = _solve(own, VARIANCES.get(metric, share_variance), first, second, _quantile(confidence, freedom))
        error = np.sqrt(((own.value - low) ** 2 + (high - own.value) ** 2) / 2) / _quantile(confidence, freedom)
        ends[:, known, column] = low, high, error, freedom
    return Intervals(*ends)


def add_mean(estimate: Estimate, intervals: Intervals, confidence: float) -> tuple[Estimate, Intervals]:
    """Adds a last row: the mean of each metric over the rows that have a value, without the pool in the last one."""
    columns = [_mean(estimate, intervals, column, confidence) for column in range(estimate.value.shape[1])]
    means = Estimate(*(np.stack(part, axis=-1) for part in list(zip(*columns, strict=True))[:2]))
    ends = np.array([ends for *_, ends in columns]).T  # (4, metrics)
    joined = Estimate(
        np.concatenate([estimate.value, means.value[None]]),
        np.concatenate([estimate.deviations, means.deviations[:, None]], axis=1),
    )
    parts = (intervals.low, intervals.high, intervals.error, intervals.freedom)
    return joined, Intervals(*(np.concatenate([part, end[None]]) for part, end in zip(parts, ends, strict=True)))


def _mean(
    estimate: Estimate, intervals: Intervals, column: int, confidence: float
) -> tuple[float, Floats, tuple[float, float, float, float]]:
    """The mean of one metric, its deviations (groups,), and its interval, error and degrees of freedom.

    The distances of the rows' ends from their values add up as correlated errors (MOVER: Zou and Donner, Stat Med
    2008). The jackknife gives the correlations. A row without an interval may lie anywhere in [0, 1].
    """
    known = np.flatnonzero(~np.isnan(estimate.value[:-1, column]))
    value, deviations = estimate.value[known, column], estimate.deviations[:, known, column]
    if not len(known) or not len(deviations):
        return float(value.mean()) if len(known) else np.nan, np.zeros(len(deviations)), (np.nan,) * 4
    one, other = (Estimate(value, part) for part in (deviations[:, :, None], deviations[:, None, :]))
    correlation = one.correlation(other)
    np.fill_diagonal(correlation, 1.0)
    below = value - np.nan_to_num(intervals.low[known, column], nan=0.0)
    above = np.nan_to_num(intervals.high[known, column], nan=1.0) - value
    down, up = (float(np.sqrt(side @ correlation @ side)) / len(known) for side in (below, above))
    mean, error = float(value.mean()), float(np.hypot(down, up) / np.sqrt(2) / _quantile(confidence, np.inf))
    return mean, deviations.mean(axis=1), (max(mean - down, 0.0), min(mean + up, 1.0), error, np.inf)


@dataclass(frozen=True)
class Differences:
    """Paired differences (...) of two models, their intervals, and two-sided p-values of no difference."""

    value: Floats
    low: Floats
    high: Floats
    p_value: Floats


def paired_differences(
    one: tuple[Estimate, Intervals], other: tuple[Estimate, Intervals], is_same: NDArray[np.bool_], confidence: float
) -> Differences:
    """Differences (...), `one` minus `other`, by Student's test with the correlation of the jackknife's deviations.

    A few patients show a correlation by chance, so that it is drawn away from 1. Where `is_same` (...), both models
    decide alike and do not differ, for certain.
    """
    (ours, mine), (theirs, yours) = one, other
    value = ours.value - theirs.value
    carriers = np.minimum(ours.carriers, theirs.carriers)
    lost = 1 + LOST_CARRIERS / np.where(carriers > 0, carriers, np.inf)
    found = ours.correlation(theirs)
    correlation = np.maximum(np.minimum(found, 0.0), 1 - (1 - found) * lost)
    variance = mine.error**2 + yours.error**2 - 2 * correlation * mine.error * yours.error
    error = np.where(is_same, 0.0, np.sqrt(np.maximum(variance, 0.0)))
    freedom = np.minimum(mine.freedom, yours.freedom)
    reach = _quantile(confidence, freedom) * error
    statistic = np.divide(np.abs(value), error, out=np.zeros_like(value), where=error > 0)
    p_value = np.where(np.isnan(error), np.nan, 2 * stdtr(freedom, -statistic))
    low, high = np.maximum(value - reach, -1.0), np.minimum(value + reach, 1.0)
    return Differences(value, low, high, p_value)


def auroc_variance(x: Floats, positive: Floats, negative: Floats) -> Floats:
    """Variance of the AUROC at a true value x, by the counts of independent positives and negatives."""
    count = (positive + negative) / 2 - 1
    return x * (1 - x) / (positive * negative) * (1 + count * ((1 - x) / (2 - x) + x / (1 + x)))


def share_variance(x: Floats, count: Floats, _: Floats) -> Floats:
    """Variance of a share at a true value x."""
    return x * (1 - x) / count


def f1_variance(x: Floats, count: Floats, _: Floats) -> Floats:
    """Variance of F1 at a true value x, by the count of hits, misses and false alarms."""
    return x * (1 - x) * (2 - x) ** 2 / (2 * count)


VARIANCES: dict[str, Variance] = {"auroc": auroc_variance, "f1": f1_variance}


def _count_patients(items: Items, metric: str) -> tuple[float, float, int]:
    """Two effective counts of patients, and the number of patients of the rarer side, under a metric."""
    decided, called = ~np.isnan(items.decisions), items.decisions == 1
    if metric == "auroc":
        (first, fewer), (second, more) = (_effective(items.patients[side]) for side in (items.labels, ~items.labels))
        return first, second, min(fewer, more)
    counted = {
        "average_precision": items.labels, "f1": decided & (items.labels | called), "precision": called,
        "recall": decided & items.labels, "specificity": decided & ~items.labels, "accuracy": decided,
        "weighted_f1": decided,
    }.get(metric, np.ones(len(items.labels), bool))  # fmt: skip
    count, patients = _effective(items.patients[counted])
    return count, count, patients


def _effective(patients: NDArray[np.int64]) -> tuple[float, int]:
    """The number of equally large patients with the same variance (Kish), and the number of patients."""
    sizes = np.bincount(patients)
    sizes = sizes[sizes > 0].astype(float)
    return (float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0), len(sizes)


def _solve(
    estimate: Estimate, variance: Variance, first: Floats, second: Floats, quantile: Floats
) -> tuple[Floats, Floats]:
    """The lowest and the highest true value x with (value - x)² <= q² c V(x)."""
    value = estimate.value
    modelled = variance(np.clip(value, 1e-6, 1 - 1e-6), first, second)
    ratio, carriers = estimate.variance / modelled, estimate.carriers
    scale = np.maximum(ratio, (carriers * ratio + PRIOR_CARRIERS) / (carriers + PRIOR_CARRIERS))

    def farthest(end: float) -> Floats:
        inside, outside = value, np.full_like(value, end)
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            is_inside = (value - middle) ** 2 <= quantile**2 * scale * variance(middle, first, second)
            inside, outside = np.where(is_inside, middle, inside), np.where(is_inside, outside, middle)
        return inside

    return farthest(0.0), farthest(1.0)


def _degrees_of_freedom(estimate: Estimate, patients: Floats) -> Floats:
    """Those of the jackknife's variance, by the kurtosis of its deviations, at most the patients less one."""
    carriers, groups = estimate.carriers, max(len(estimate.deviations), 1)
    most = np.maximum(patients - 1, 1.0)
    by_kurtosis = 2 * carriers / np.maximum(1 - carriers / groups, 1e-3)
    return np.where(carriers > 0, np.clip(by_kurtosis, 1.0, most), most)


def _quantile(confidence: float, freedom: Floats | float) -> Floats:
    return np.asarray(stdtrit(freedom, (1 + confidence) / 2))
