"""Bootstrap intervals: patients are drawn with replacement, and every metric is computed for each draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from ctclip_model.config import EvaluationConfig

Floats = NDArray[np.floating]
Weights = NDArray[np.int32]


@dataclass(frozen=True)
class Resamples:
    """Weights of the patients: 1 each in the data, their number in each draw, and 0 for a group that is left out."""

    patients: NDArray[np.int64]  # (N,) column of each item's patient
    original: Weights  # (1, patients)
    drawn: Weights  # (resamples, patients)
    left_out: Weights  # (groups, patients)
    confidence: float

    @staticmethod
    def draw(patients: Sequence[str] | Sequence[int], config: EvaluationConfig) -> Resamples:
        """Draws by the configuration's seed. `patients` (N,) is the patient of each item."""
        names, columns = np.unique(np.asarray(patients), return_inverse=True)
        count, rng = len(names), np.random.default_rng(config.seed)
        drawn = np.zeros((config.resamples, count), np.int32)
        for row in drawn:
            row += np.bincount(rng.integers(max(1, count), size=count), minlength=count)
        groups = min(count, config.jackknife_groups)
        left_out = (rng.permutation(count) % max(1, groups) != np.arange(groups)[:, None]).astype(np.int32)
        return Resamples(columns, np.ones((1, count), np.int32), drawn, left_out, config.confidence)

    def estimate(self, statistic: Callable[[Weights], Floats]) -> Estimate:
        """The values of a statistic, a function of weights (R, patients) with values (R, ...)."""
        return Estimate(
            statistic(self.original)[0], statistic(self.drawn), statistic(self.left_out), confidence=self.confidence
        )


@dataclass(frozen=True)
class Estimate:
    """Values (...) on the data, on each draw (resamples, ...) and without each group of patients (groups, ...).

    A draw that has no value, such as one of a single class, does not count for intervals.
    """

    value: Floats
    drawn: Floats
    left_out: Floats
    confidence: float

    def __sub__(self, other: Estimate) -> Estimate:
        """The paired difference of two estimates from the same resamples."""
        return Estimate(
            self.value - other.value, self.drawn - other.drawn, self.left_out - other.left_out, self.confidence
        )

    @property
    def tails(self) -> NDArray[np.float64]:
        return np.array([(1 - self.confidence) / 2, (1 + self.confidence) / 2])

    def percentile_intervals(self) -> Floats:
        """Percentile intervals (2, ...): the quantiles of the draws at both tails."""
        return self._per_value(lambda value, drawn, left_out: np.quantile(drawn, self.tails), 2)

    def bca_intervals(self) -> Floats:
        """Bias-corrected and accelerated intervals (2, ...) (Efron, JASA 1987). NaN where all draws lie on one side.

        The acceleration comes from leaving out groups of patients, an estimate of leaving out each one.
        """

        def interval(value: float, drawn: Floats, left_out: Floats) -> Floats:
            bias = ndtri(((drawn < value).mean() + (drawn <= value).mean()) / 2)
            influence = left_out.mean() - left_out if len(left_out) else np.zeros(1)
            spread = (influence**2).sum() ** 1.5
            acceleration = (influence**3).sum() / (6 * spread) if spread > 0 else 0.0
            shifted = bias + ndtri(self.tails)
            levels = ndtr(bias + shifted / (1 - acceleration * shifted)) if np.isfinite(bias) else np.full(2, np.nan)
            return np.quantile(drawn, levels) if np.isfinite(levels).all() else levels

        return self._per_value(interval, 2)

    def p_values(self) -> Floats:
        """Two-sided p-values (...) of the value 0, from the number of draws on its other side."""

        def p_value(value: float, drawn: Floats, left_out: Floats) -> Floats:
            beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
            return np.array([min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))])

        return self._per_value(p_value, 1)[0]

    def _per_value(self, function: Callable[[float, Floats, Floats], Floats], count: int) -> Floats:
        """Applies a function with `count` results to each value, (count, ...). NaN without a value or a draw."""
        result = np.full((count, *self.value.shape), np.nan)
        for index in np.ndindex(self.value.shape):
            drawn, left_out = (part[(slice(None), *index)] for part in (self.drawn, self.left_out))
            drawn, left_out = drawn[~np.isnan(drawn)], left_out[~np.isnan(left_out)]
            if len(drawn) and not np.isnan(self.value[index]):
                result[(slice(None), *index)] = function(float(self.value[index]), drawn, left_out)
        return result


def holm(p_values: Floats) -> Floats:
    """p-values (n,) corrected for n tests (Holm, Scand J Statist 1979). NaN stays NaN and counts as no test."""
    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected
