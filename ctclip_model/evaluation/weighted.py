"""Every metric of one label under many weightings of its patients at once.

A patient that is left out has the weight 0, and one that is drawn k times the weight k. Scores are sorted once. AUROC
and average precision come from cumulative sums of the weights. The other metrics come from sums by patient, which are
one matrix product. Sums of whole numbers are exact: the values equal scikit-learn's on the repeated items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANKING_METRICS = ("auroc", "average_precision")
DECISION_METRICS = ("f1", "weighted_f1", "accuracy", "precision", "recall", "specificity")
CALIBRATION = "calibration_error"
PROBABILITY_METRICS = ("brier", CALIBRATION)
METRICS = (*RANKING_METRICS, *DECISION_METRICS, *PROBABILITY_METRICS)

BLOCK = 2**18  # weights gathered at once, as many as a core's own cache holds

Floats = NDArray[np.floating]
Weights = NDArray[np.int32]


@dataclass(frozen=True)
class Items:
    """The known items of one label, or of a pool of labels; arrays (n,)."""

    labels: NDArray[np.bool_]
    probabilities: Floats
    decisions: Floats  # 0 or 1; NaN where an item does not count for metrics of decisions
    patients: NDArray[np.int64]  # column of each item's patient in the weights

    @staticmethod
    def pool(parts: list[Items]) -> Items:
        """One pool of the items of several labels, empty for none."""
        parts = parts or [Items(np.zeros(0, bool), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))]
        names = ("labels", "probabilities", "decisions", "patients")
        return Items(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def has_both_classes(self) -> bool:
        return bool(self.labels.any() and not self.labels.all())


def weighted_metrics(items: Items, weights: Weights, *, calibration_bins: int) -> Floats:
    """Values (R, metrics), in the order of `METRICS`, under R weightings of the patients (R, patients).

    NaN where a class has no weight, and for metrics of decisions where there are no decisions. A tie counts half in
    AUROC, as in the Mann-Whitney statistic. Precision and F1 are 0 without a positive decision. The calibration error
    is the expected one over bins of equal width (Naeini et al., AAAI 2015).
    """
    values = np.full((len(weights), len(METRICS)), np.nan)
    if items.has_both_classes:
        values[:, : len(RANKING_METRICS)] = _ranking(items, weights)
        values[:, len(RANKING_METRICS) :] = _sums(items, weights, calibration_bins)
        values[np.isnan(values[:, 0])] = np.nan  # drops resamples of one class
    return values


@dataclass(frozen=True)
class _TieGroups:
    """Items in descending order of probability, and their positives in groups of equal probability."""

    patients: NDArray[np.int64]  # (n,) each item's column of the weights
    positive_patients: NDArray[np.int64]  # (positives,) each positive's column of the weights
    starts: NDArray[np.int64]  # (groups,) index of each group's first positive among the positives
    above: NDArray[np.int64]  # (groups,) count of items with a higher probability
    down_to: NDArray[np.int64]  # (groups,) count of items with an equal or higher probability


def _group_ties(items: Items) -> _TieGroups:
    order = np.argsort(-items.probabilities, kind="stable")
    scores, is_positive = -items.probabilities[order], items.labels[order]
    starts = np.flatnonzero(np.diff(scores[is_positive], prepend=-np.inf))
    levels = scores[is_positive][starts]
    return _TieGroups(
        patients=items.patients[order],
        positive_patients=items.patients[order[is_positive]],
        starts=starts,
        above=np.searchsorted(scores, levels, "left"),
        down_to=np.searchsorted(scores, levels, "right"),
    )


def _ranking(items: Items, weights: Weights) -> Floats:
    """AUROC and average precision, (R, 2)."""
    ties = _group_ties(items)
    values = np.empty((len(weights), len(RANKING_METRICS)))
    rows = max(1, BLOCK // len(ties.patients))
    for start in range(0, len(weights), rows):
        values[start : start + rows] = _rank_block(ties, weights[start : start + rows])
    return values


def _rank_block(ties: _TieGroups, weights: Weights) -> Floats:
    """AUROC and average precision under some of the weightings, (R, 2).

    P and N are the weights of all positives and all negatives. A group g of tied positives has the weight w(g). Down
    to the group, itself included, lie positives of weight p(g) and items of weight a(g). Below the group lie negatives
    of weight n(g), where tied ones count half. Then, with sums over the groups,

        AUROC             = sum of w(g) n(g), divided by P N
        average precision = sum of w(g) p(g) / a(g), divided by P
    """
    total = np.zeros((len(weights), len(ties.patients) + 1), np.int32)  # total[:, k]: weight of the first k items
    np.cumsum(weights[:, ties.patients], axis=1, dtype=np.int32, out=total[:, 1:])
    group = np.add.reduceat(weights[:, ties.positive_patients], ties.starts, axis=1, dtype=np.float64)  # (R, groups)
    positives_down_to, items_down_to = group.cumsum(axis=1), total[:, ties.down_to]
    positives = positives_down_to[:, -1]
    negatives = total[:, -1] - positives
    negatives_above = total[:, ties.above] - (positives_down_to - group)
    negatives_down_to = items_down_to - positives_down_to
    negatives_below = negatives[:, None] - (negatives_above + negatives_down_to) / 2
    precision = positives_down_to / np.maximum(items_down_to, 1)
    auroc = _ratio((group * negatives_below).sum(axis=1), positives * negatives)
    return np.column_stack([auroc, _ratio((group * precision).sum(axis=1), positives)])


def _sums(items: Items, weights: Weights, calibration_bins: int) -> Floats:
    """Metrics of decisions and of probabilities, (R, 8)."""
    truth, decided = items.labels.astype(np.float64), ~np.isnan(items.decisions)
    positive = np.nan_to_num(items.decisions)
    columns = np.column_stack(
        [
            truth * positive, (1 - truth) * positive, truth * decided * (1 - positive),
            (1 - truth) * decided * (1 - positive), (items.probabilities - truth) ** 2, np.ones(len(truth)),
        ]
    )  # fmt: skip
    by_patient = np.zeros((weights.shape[1], columns.shape[1]))
    np.add.at(by_patient, items.patients, columns)
    sums = (weights @ by_patient).T
    hit, false_alarm, miss, rejection, squares, count = sums
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
        + [_ratio(squares, count), np.abs(bin_gaps(items, weights, calibration_bins)).sum(axis=1)]
    )


def bin_numbers(items: Items, bins: int) -> NDArray[np.int64]:
    """The number of each item's bin of equal width."""
    return np.minimum((items.probabilities * bins).astype(np.int64), bins - 1)


def bin_gaps(items: Items, weights: Weights, bins: int) -> Floats:
    """Sums (R, bins) of probability minus label over the items of each bin of equal width, divided by all items."""
    index = bin_numbers(items, bins)
    by_patient = np.zeros((weights.shape[1], bins + 1))
    np.add.at(by_patient, (items.patients, index), items.probabilities - items.labels)
    np.add.at(by_patient[:, bins], items.patients, 1.0)
    sums = weights @ by_patient
    gaps, count = sums[:, :bins], sums[:, bins:]
    return np.divide(gaps, count, out=np.full(gaps.shape, np.nan), where=count > 0)


def _ratio(numerator: Floats, denominator: Floats, otherwise: float = np.nan) -> Floats:
    """Quotients, and `otherwise` where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), otherwise), where=denominator > 0)
