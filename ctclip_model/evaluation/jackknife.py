"""Jackknife over patients: every metric again without each group of patients.

A patient's scans leave together, so that they count as one observation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import EvaluationConfig

Floats = NDArray[np.floating]
Weights = NDArray[np.int32]


@dataclass(frozen=True)
class Jackknife:
    """Weights of the patients: 1 each in the data, and 0 for a group that is left out."""

    patients: NDArray[np.int64]  # (N,) column of each item's patient
    original: Weights  # (1, patients)
    left_out: Weights  # (groups, patients)

    @staticmethod
    def draw(patients: Sequence[str] | Sequence[int], config: EvaluationConfig) -> Jackknife:
        """Draws the groups by the configuration's seed. `patients` (N,) is the patient of each item."""
        names, columns = np.unique(np.asarray(patients), return_inverse=True)
        count, rng = len(names), np.random.default_rng(config.seed)
        groups = min(count, config.jackknife_groups)
        left_out = (rng.permutation(count) % max(1, groups) != np.arange(groups)[:, None]).astype(np.int32)
        return Jackknife(columns, np.ones((1, count), np.int32), left_out)

    def estimate(self, statistic: Callable[[Weights], Floats]) -> Estimate:
        """The values of a statistic, a function of weights (R, patients) with values (R, ...)."""
        return Estimate(statistic(self.original)[0], _deviations(statistic(self.left_out)))


@dataclass(frozen=True)
class Estimate:
    """Values (...) on the data, and deviations (groups, ...) whose squares add up to the variances."""

    value: Floats
    deviations: Floats

    @cached_property
    def variance(self) -> Floats:
        return np.asarray((self.deviations**2).sum(axis=0))

    @cached_property
    def carriers(self) -> Floats:
        """The number of groups that carry the variance: 1 for a single one, a third of them for normal deviations."""
        fourth = np.asarray((self.deviations**4).sum(axis=0))
        return np.divide(self.variance**2, fourth, out=np.zeros(fourth.shape), where=fourth > 0)

    def correlation(self, other: Estimate) -> Floats:
        """Correlation of the deviations with another's from the same groups. 0 where either has none."""
        product = np.asarray((self.deviations * other.deviations).sum(axis=0))
        spread = np.sqrt(self.variance * other.variance)
        return np.divide(product, spread, out=np.zeros(product.shape), where=spread > 0)


def _deviations(left_out: Floats) -> Floats:
    """Deviations (groups, ...) of the values without each group, 0 where there is no value without it."""
    known = ~np.isnan(left_out)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, left_out, 0.0).sum(axis=0) / count
    return np.asarray(np.where(known, left_out - mean, 0.0) * np.sqrt((count - 1) / count))
