"""Rules of decisions, fitted on some patients of a cohort and counted on the others.

The threshold is the point of the ROC curve nearest to the corner, as elsewhere. The calibration is Platt's (Advances in
Large Margin Classifiers, 1999): two numbers are known from few positives, and the order of the scores stays. Isotonic
regression needs a thousand items or more (Niculescu-Mizil & Caruana, ICML 2005), which rare abnormalities lack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import EvaluationConfig
from ctclip_model.evaluation import metrics
from ctclip_model.evaluation.decisions import calibrate, logit

Floats = NDArray[np.floating]


@dataclasses.dataclass(frozen=True)
class FittedRule:
    """A rule of one label, with the fields of `DecisionRule`. Values are None where a class has no patients."""

    abnormality: str
    threshold: float | None
    slope: float | None
    intercept: float | None
    sensitivity: float | None
    sensitivity_low: float | None
    sensitivity_high: float | None
    specificity: float | None
    specificity_low: float | None
    specificity_high: float | None
    brier_score: float | None
    brier_calibrated: float | None
    n: int
    n_positive: int
    has_few_patients: bool
    count_patients: int
    count_fitting: int


def fit_rules(
    names: Sequence[str], labels: Floats, scores: Floats, patients: Sequence[str], config: EvaluationConfig
) -> list[FittedRule]:
    """The rule of each label, from `labels` (N, L) in {0, 1, NaN} and `scores` (N, L) in [0, 1].

    Patients are drawn to fit the rules as `draw_choosers` draws them. The others are counted.
    """
    fits = metrics.draw_choosers(patients, config)
    thresholds = metrics.choose_thresholds(labels[fits], scores[fits])
    platts = [fit_platt(*pair) for pair in zip(labels[fits].T, scores[fits].T, strict=True)]
    counted = [patient for patient, is_fitting in zip(patients, fits, strict=True) if not is_fitting]
    config = dataclasses.replace(config, noise_draws=0)
    scored = metrics.Scored(names, labels[~fits], scores[~fits], thresholds, "", counted)
    known = [(1.0, 0.0) if np.isnan(platt[0]) else platt for platt in platts]  # else the score itself
    calibrated = np.column_stack([calibrate(column, *platt) for column, platt in zip(scores.T, known, strict=True)])
    by_metric = _by_metric(metrics.score(scored, config))
    plain = dataclasses.replace(config, jackknife_groups=0)
    after = _by_metric(metrics.score(dataclasses.replace(scored, probabilities=calibrated[~fits]), plain))
    count_patients = len(set(counted))
    rules = []
    for name, threshold, (slope, intercept) in zip(names, thresholds, platts, strict=True):
        recall, specificity, brier = (by_metric[name, metric] for metric in ("recall", "specificity", "brier"))
        rules.append(
            FittedRule(
                abnormality=name,
                threshold=metrics.optional(threshold),
                slope=metrics.optional(slope),
                intercept=metrics.optional(intercept),
                sensitivity=recall.value,
                sensitivity_low=recall.ci_low,
                sensitivity_high=recall.ci_high,
                specificity=specificity.value,
                specificity_low=specificity.ci_low,
                specificity_high=specificity.ci_high,
                brier_score=brier.value,
                brier_calibrated=after[name, "brier"].value,
                n=brier.n,
                n_positive=brier.n_positive or 0,
                has_few_patients=brier.has_few_patients,
                count_patients=count_patients,
                count_fitting=len(set(patients)) - count_patients,
            )
        )
    return rules


def fit_platt(labels: Floats, scores: Floats) -> tuple[float, float]:
    """Slope and intercept of Platt's calibration of `scores` (N,) in [0, 1], by `labels` (N,) in {0, 1, NaN}.

    The targets are Platt's, (positives + 1) / (positives + 2) and 1 / (negatives + 2), so that separated classes have a
    finite slope. A negative slope would turn the order around: the slope is then 0, and the probability the prevalence.
    NaN for labels of a single class.
    """
    known = ~np.isnan(labels)
    positive, values = labels[known] == 1, logit(scores[known])
    if positive.all() or not positive.any():
        return np.nan, np.nan
    targets = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2))
    mean, deviation = values.mean(), values.std()
    slope = intercept = 0.0
    if deviation > 0:
        slope, intercept = _fit_logistic((values - mean) / deviation, targets)
    if slope <= 0:
        return 0.0, float(logit(targets.mean()))
    return slope / deviation, intercept - slope * mean / deviation


def _fit_logistic(values: Floats, targets: Floats) -> tuple[float, float]:
    """Slope and intercept for targets in (0, 1): each value counts as a positive and as a negative, by its target."""
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate([np.ones(len(values)), np.zeros(len(values))])
    fitted = LogisticRegression(C=np.inf).fit(
        np.tile(values, 2)[:, None], both, sample_weight=np.concatenate([targets, 1 - targets])
    )
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def _by_metric(rows: list[metrics.MetricRow]) -> dict[tuple[str, str], metrics.MetricRow]:
    return {(row.abnormality, row.metric): row for row in rows}
