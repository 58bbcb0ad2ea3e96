"""Decisions on scores: thresholds and calibration of an evaluation, kept beside the weights that they belong to.

A rule belongs to one abnormality. Its threshold and its calibration were fitted on some patients of a cohort. Its
sensitivity and specificity were counted on the other patients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctclip_model.config import DECISIONS_FILE
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.label_sets import BUILT_IN, CT_RATE_18, LabelSet
from ctclip_model.errors import CheckpointError, ConfigurationError
from ctclip_model.files import whole_file
from ctclip_model.json_config import read_config

LEAST = 1e-12  # distance of a score from 0 and 1 in its logit


@dataclass(frozen=True)
class DecisionRule:
    """The rule of one abnormality. Raises `ValueError` for values that are no rule.

    A score from `threshold` on counts as present. The calibrated probability is the logistic function of
    `slope * logit(score) + intercept` (Platt, 1999). Sensitivity, specificity, their 95 % intervals and the Brier
    scores before and after calibration were counted on `n` volumes, of which `n_positive` have the label.
    """

    abnormality: str
    threshold: float
    slope: float
    intercept: float
    sensitivity: float
    specificity: float
    n: int
    n_positive: int
    sensitivity_low: float | None = None
    sensitivity_high: float | None = None
    specificity_low: float | None = None
    specificity_high: float | None = None
    brier_score: float | None = None
    brier_calibrated: float | None = None
    has_few_patients: bool = False  # fewer than 5 counted patients have the label, or lack it

    def __post_init__(self) -> None:
        shares = (self.threshold, self.sensitivity, self.specificity)
        if not all(0 <= share <= 1 for share in shares):  # nan fails as well
            raise ValueError(f"threshold, sensitivity and specificity {shares} are not in [0, 1]")
        if not (np.isfinite(self.intercept) and 0 <= self.slope < np.inf):
            raise ValueError(f"slope {self.slope} and intercept {self.intercept} are no calibration")

    def calibrate(self, score: float) -> float:
        """The calibrated probability of a score."""
        return float(calibrate(score, self.slope, self.intercept))


@dataclass(frozen=True)
class Cohort:
    """The patients of an evaluation: those who fitted the rules, and the others, who were counted."""

    dataset: str
    split: str
    protocol: str
    label_source: str
    run_id: str  # run of the evaluation
    count_patients: int  # counted for sensitivity and specificity
    count_fitting: int  # fitted thresholds and calibration

    @property
    def lines(self) -> tuple[str, str]:
        """The cohort in words, in two lines of fewer than 80 columns for ordinary names."""
        return (
            f"{self.dataset} {self.split}, {self.protocol}, {self.label_source} labels, evaluation {self.run_id[:15]}",
            f"fitted on {self.count_fitting:,} patients, counted on {self.count_patients:,} others, by volume",
        )


@dataclass(frozen=True)
class Decision:
    """A score in a volume. Without a rule, the abnormality is neither calibrated nor decided."""

    abnormality: str
    score: float  # uncalibrated, in [0, 1]
    rule: DecisionRule | None = None

    @property
    def probability(self) -> float | None:
        """The calibrated probability, or None without a rule."""
        return None if self.rule is None else self.rule.calibrate(self.score)

    @property
    def is_present(self) -> bool | None:
        """True for a score from the threshold on, or None without a rule."""
        return None if self.rule is None else self.score >= self.rule.threshold

    @property
    def word(self) -> str:
        """`present`, `absent` or `undecided`."""
        return {True: "present", False: "absent", None: "undecided"}[self.is_present]

    def as_json(self) -> dict[str, Any]:
        """The score, and the rule's facts. Those of no rule are None."""
        names = ("threshold", "sensitivity", "specificity")
        facts = {name: None if self.rule is None else getattr(self.rule, name) for name in names}
        return {"score": self.score, "probability": self.probability, "is_present": self.is_present} | facts


@dataclass(frozen=True)
class Decisions:
    """The rules of a model's weights on the findings of a label set, and their cohort.

    `others` are those of other label sets. Raises `ValueError` for a repeated abnormality, or one that the 18 lack.
    """

    weights_sha256: str
    cohort: Cohort
    rules: tuple[DecisionRule, ...]
    label_set: str = BUILT_IN
    findings_fingerprint: str = CT_RATE_18.fingerprint  # fingerprint of the label set
    others: tuple[Decisions, ...] = ()

    def __post_init__(self) -> None:
        if len(self.by_abnormality) < len(self.rules):
            raise ValueError("an abnormality has more than one rule")
        if self.label_set == BUILT_IN and (unknown := self.by_abnormality.keys() - {*ABNORMALITIES}):
            raise ValueError(f"{min(unknown)!r} is no abnormality")

    @property
    def by_set(self) -> dict[str, Decisions]:
        """These and the others by the name of their label set, each alone."""
        return {one.label_set: replace(one, others=()) for one in (self, *self.others)}

    @property
    def parts(self) -> dict[str, Any]:
        """Cohort, rules and weights, without the other sets: what a decision depends on."""
        return {name: part for name, part in asdict(self).items() if name in ("weights_sha256", "cohort", "rules")}

    def of_weights(self, weights_sha256: str) -> Decisions:
        """The same decisions as those of another file of the same weights."""
        others = tuple(one.of_weights(weights_sha256) for one in self.others)
        return replace(self, weights_sha256=weights_sha256, others=others)

    @cached_property
    def by_abnormality(self) -> Mapping[str, DecisionRule]:
        return {rule.abnormality: rule for rule in self.rules}


def decide(
    scores: NDArray[np.floating], decisions: Decisions | None, names: Sequence[str] = ABNORMALITIES
) -> tuple[Decision, ...]:
    """Decisions on a volume's scores (names,). Without rules, all are undecided."""
    rules = {} if decisions is None else decisions.by_abnormality
    return tuple(Decision(name, float(score), rules.get(name)) for name, score in zip(names, scores, strict=True))


def logit(scores: ArrayLike) -> NDArray[np.float64]:
    """The logits of scores in [0, 1], finite at both ends too."""
    inside = np.clip(np.asarray(scores, np.float64), LEAST, 1 - LEAST)
    return np.log(inside) - np.log1p(-inside)


def calibrate(scores: ArrayLike, slope: float, intercept: float) -> NDArray[np.float64]:
    """The logistic function of `slope * logit(scores) + intercept`."""
    return np.exp(-np.logaddexp(0.0, -(slope * logit(scores) + intercept)))


def find_decisions(folder: Path, weights_sha256: str, label_set: LabelSet = CT_RATE_18) -> Decisions | None:
    """The decisions in a model folder on the findings and prompts of a label set, or None if none are left.

    Raises as `read_decisions`.
    """
    found = read_decisions(folder, weights_sha256)
    one = None if found is None else found.by_set.get(label_set.name)
    return one if one is not None and one.findings_fingerprint == label_set.fingerprint else None


def read_decisions(folder: Path, weights_sha256: str) -> Decisions | None:
    """All decisions in a model folder, those of the model's own label set first. None: no evaluation has left any.

    Raises `CheckpointError` for a damaged file, and for rules of other weights than those of `weights_sha256`.
    """
    path = folder / DECISIONS_FILE
    remedy = "run `ctclip evaluate` with this model, or delete the file"
    try:
        found = read_config(Decisions, path)
    except FileNotFoundError:
        return None
    except (ConfigurationError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. {remedy}") from error
    if found.weights_sha256 != weights_sha256:
        raise CheckpointError(f"{path} belongs to other weights than this folder's: {remedy}")
    return found


def write_decisions(folder: Path, decisions: Decisions) -> None:
    """Writes the decisions into a model folder, atomically."""
    with whole_file(folder / DECISIONS_FILE) as file:
        file.write(json.dumps(asdict(decisions), indent=1, allow_nan=False).encode())
