"""Expected calibration error, without its bias and with an interval.

The plain estimate (Naeini et al., AAAI 2015) is the sum over bins of the absolute gap between the mean probability and
the frequency. Noise adds to every absolute gap, so that the estimate is above 0 for a calibrated model too, and no
resample of it covers the truth. Here the gaps are scaled by a factor, and the jackknife's noise is added to them. The
estimate is the plain one times the factor with which the plain one is the median of the draws. The ends of the interval
belong to the factors with which few draws are as small, or as large. Each end is at least a standard error away.

A bin without positives, or with nothing else, has a rate without variance by the jackknife, though it is not known to
be 0 or 1. For the ends, the variance of the rate is at least that of Laplace's, (positives + 1) / (patients + 2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ctclip_model.config import EvaluationConfig
from ctclip_model.evaluation.jackknife import Estimate, Jackknife
from ctclip_model.evaluation.weighted import Items, bin_gaps, bin_numbers

LARGEST_FACTOR = 8.0
HALVINGS = 30

Floats = NDArray[np.floating]


def calibration_error(items: Items, jackknife: Jackknife, config: EvaluationConfig) -> tuple[float, float, float]:
    """The estimate, and the ends of its interval, which hold it.

    Without patients of both classes, groups or draws, the estimate is the plain one, and the ends are NaN.
    """
    gaps = jackknife.estimate(lambda weights: bin_gaps(items, weights, config.calibration_bins))
    plain = float(np.abs(gaps.value).sum())
    fewest = min(len(np.unique(items.patients[side])) for side in (items.labels, ~items.labels))
    if not len(gaps.deviations) or not config.noise_draws or fewest == 0:
        return plain, np.nan, np.nan
    tail = (1 - config.confidence) / 2
    (middle,) = _find_errors(gaps, plain, (0.5,), config)
    widened = _widen(gaps, items, config.calibration_bins)
    low, high = _find_errors(widened, plain, (1 - tail, tail), config)
    signs = np.where(gaps.value < 0, -1, 1)
    error = np.sqrt(((widened.deviations @ signs) ** 2).sum())  # standard error of a sum of known signs
    reach = float(stdtrit(max(fewest - 1, 1), 1 - tail) * error)
    return middle, max(0.0, min(low, middle - reach)), min(1.0, max(high, middle, plain + reach))


def _widen(gaps: Estimate, items: Items, bins: int) -> Estimate:
    """Gaps with deviations of their own for the bins whose rate varies less than Laplace's."""
    index = bin_numbers(items, bins)
    count, positives = (np.bincount(index, weights, bins) for weights in (None, items.labels))
    patients = np.bincount(np.unique(np.stack([items.patients, index]), axis=1)[1], minlength=bins)
    found = positives / np.maximum(count, 1)
    rate = (found * patients + 1) / (patients + 2)
    missing = rate * (1 - rate) / np.maximum(patients, 1) - found * (1 - found) / np.maximum(patients - 1, 1)
    own = np.diag(count / len(index) * np.sqrt(np.maximum(missing, 0)))
    return Estimate(gaps.value, np.concatenate([gaps.deviations, own]))


def _find_errors(gaps: Estimate, plain: float, levels: tuple[float, ...], config: EvaluationConfig) -> list[float]:
    """The errors, at most 1, with which the plain estimate is each quantile of the draws. 0 where there is none."""
    draws = np.random.default_rng(config.seed).standard_normal((config.noise_draws, len(gaps.deviations)))
    noise = draws @ gaps.deviations  # (draws, bins)
    errors = []
    for level in levels:
        low, high = 0.0, LARGEST_FACTOR
        place = round(level * (len(noise) - 1))
        for _ in range(HALVINGS):
            factor = (low + high) / 2
            is_small = np.partition(np.abs(factor * gaps.value + noise).sum(axis=1), place)[place] < plain
            low, high = (factor, high) if is_small else (low, factor)
        errors.append(min(1.0, plain * low))
    return errors
