"""ROC and precision-recall curves, thinned for drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from ctclip_model.evaluation.metrics import check_values, optional

CURVE_POINTS = 200  # most points of a curve

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class CurveRow:
    """A row of the `curves` table: a point (1 - specificity, recall) of 'roc', or (recall, precision) of 'pr'."""

    abnormality: str
    curve: str
    point: int
    x: float
    y: float
    threshold: float | None  # None at the end without a positive decision


def curves(labels: Floats, probabilities: Floats, names: Sequence[str]) -> list[CurveRow]:
    """Both curves of each label with both classes. `labels` (N, L) in {0, 1, NaN}, `probabilities` (N, L) in [0, 1]."""
    check_values(labels, probabilities)
    rows = []
    for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True):
        if not {0.0, 1.0} <= set(truth):
            continue
        truth, scores = truth[~np.isnan(truth)], scores[~np.isnan(truth)]
        rows += _thinned(name, "roc", *roc_curve(truth, scores))
        precision, recall, thresholds = precision_recall_curve(truth, scores)
        rows += _thinned(name, "pr", recall, precision, np.append(thresholds, np.inf))
    return rows


def _thinned(name: str, curve: str, x: Floats, y: Floats, thresholds: Floats) -> list[CurveRow]:
    kept = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).round().astype(int))
    return [
        CurveRow(name, curve, point, float(x[i]), float(y[i]), optional(thresholds[i])) for point, i in enumerate(kept)
    ]
