"""Every metric of one label under many weightings of its patients at once, which is what a bootstrap asks for.

Drawing a patient k times weighs all of that patient's items by k. So scores are sorted once, a resample is a row of
whole numbers, AUROC and average precision come from cumulative sums of it, and all else from sums by patient, which
are one matrix product. Sums of whole numbers are exact: the values are scikit-learn's of the repeated items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANKING_METRICS = ("auroc", "average_precision")
DECISION_METRICS = ("f1", "weighted_f1", "accuracy", "precision", "recall", "specificity")
PROBABILITY_METRICS = ("brier", "calibration_error")
METRICS = (*RANKING_METRICS, *DECISION_METRICS, *PROBABILITY_METRICS)

BLOCK = 2**18  # weights that are sorted at once: what a core's own cache holds

Floats = NDArray[np.floating]
Weights = NDArray[np.int32]


@dataclass(frozen=True)
class Items:
    """What is known of one label, item by item, (n,) each; a pool of several labels is one as well."""

    labels: NDArray[np.bool_]
    probabilities: Floats
    decisions: Floats  # 0 or 1; nan where an item does not count for metrics of decisions
    patients: NDArray[np.int64]  # the column of each item's patient in the weights

    @staticmethod
    def pool(parts: list[Items]) -> Items:
        names = ("labels", "probabilities", "decisions", "patients")
        return Items(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def has_both_classes(self) -> bool:
        return bool(self.labels.any() and not self.labels.all())


def weighted_metrics(items: Items, weights: Weights, *, calibration_bins: int) -> Floats:
    """The value (R, metrics), in the order of `METRICS`, under each of R weightings of the patients, (R, patients).

    nan where a class has no weight, and for decisions where there are none. A tie counts half in AUROC, as in the
    Mann-Whitney statistic; precision and F1 without a positive decision are 0; the calibration error is the expected
    one over bins of equal width (Naeini et al., AAAI 2015).
    """
    values = np.full((len(weights), len(METRICS)), np.nan)
    if items.has_both_classes:
        values[:, : len(RANKING_METRICS)] = _ranking(items, weights)
        values[:, len(RANKING_METRICS) :] = _sums(items, weights, calibration_bins)
        values[np.isnan(values[:, 0])] = np.nan  # a resample of one class counts for nothing
    return values


def _ranking(items: Items, weights: Weights) -> Floats:
    """AUROC and average precision, (R, 2)."""
    order = np.argsort(-items.probabilities, kind="stable")
    scores, is_positive = items.probabilities[order], items.labels[order]
    patients, positive_patients = items.patients[order], items.patients[order[is_positive]]
    # The positives of one score stand together; what decides is how much weight lies before them, and up to their end.
    groups = np.flatnonzero(np.diff(scores[is_positive], prepend=np.inf))  # where each begins among the positives
    levels = -scores[is_positive][groups]
    before, end = np.searchsorted(-scores, levels, "left"), np.searchsorted(-scores, levels, "right")
    values = np.empty((len(weights), len(RANKING_METRICS)))
    rows = max(1, BLOCK // len(order))
    for start in range(0, len(weights), rows):
        block = weights[start : start + rows]
        total = np.zeros((len(block), len(order) + 1), np.int32)
        np.cumsum(block[:, patients], axis=1, dtype=np.int32, out=total[:, 1:])
        positive = np.add.reduceat(block[:, positive_patients], groups, axis=1, dtype=np.float64)  # (rows, groups)
        found = positive.cumsum(axis=1)
        all_found, positives = total[:, end], found[:, -1]
        negatives = total[:, -1] - positives
        negatives_above = (total[:, before] - (found - positive) + all_found - found) / 2  # of the tied ones half
        won = (positive * (negatives[:, None] - negatives_above)).sum(axis=1)
        precision = found / np.maximum(all_found, 1)
        values[start : start + rows, 0] = _ratio(won, positives * negatives)
        values[start : start + rows, 1] = _ratio((positive * precision).sum(axis=1), positives)
    return values


def _sums(items: Items, weights: Weights, calibration_bins: int) -> Floats:
    """The metrics of decisions and of probabilities, (R, 8)."""
    truth, decided = items.labels.astype(np.float64), ~np.isnan(items.decisions)
    positive = np.nan_to_num(items.decisions)
    bins = np.minimum((items.probabilities * calibration_bins).astype(np.int64), calibration_bins - 1)
    excess = np.eye(calibration_bins)[bins] * (items.probabilities - truth)[:, None]
    columns = np.column_stack(
        [
            truth * positive, (1 - truth) * positive, truth * decided * (1 - positive),
            (1 - truth) * decided * (1 - positive), (items.probabilities - truth) ** 2, np.ones(len(truth)), excess,
        ]
    )  # fmt: skip
    by_patient = np.zeros((weights.shape[1], columns.shape[1]))
    np.add.at(by_patient, items.patients, columns)
    sums = (weights @ by_patient).T
    hit, false_alarm, miss, rejection, squares, count = sums[:6]
    wrong, known = miss + false_alarm, hit + false_alarm + miss + rejection
    f1, f1_of_negatives = _ratio(2 * hit, 2 * hit + wrong, 0.0), _ratio(2 * rejection, 2 * rejection + wrong, 0.0)
    decisions = [
        f1,
        _ratio((hit + miss) * f1 + (false_alarm + rejection) * f1_of_negatives, known),
        _ratio(hit + rejection, known),
        _ratio(hit, hit + false_alarm, 0.0),
        _ratio(hit, hit + miss),
        _ratio(rejection, rejection + false_alarm),
    ]
    has_decisions = np.where(known > 0, 1.0, np.nan)
    return np.column_stack(
        [value * has_decisions for value in decisions]
        + [_ratio(squares, count), _ratio(np.abs(sums[6:]).sum(axis=0), count)]
    )


def _ratio(numerator: Floats, denominator: Floats, otherwise: float = np.nan) -> Floats:
    """The quotients, and `otherwise` where there is nothing to divide by."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), otherwise), where=denominator > 0)
