"""Decisions: rules are fitted on some patients and counted on others, and are refused for other weights."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from ctclip_model.config import DECISIONS_FILE, EvaluationConfig, compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import CheckpointError
from ctclip_model.evaluation.decisions import (
    Cohort,
    Decision,
    DecisionRule,
    Decisions,
    decide,
    find_decisions,
    read_decisions,
    write_decisions,
)
from ctclip_model.evaluation.fit_decisions import fit_platt, fit_rules
from ctclip_model.evaluation.metrics import choose_thresholds, draw_choosers

CONFIG = EvaluationConfig(jackknife_groups=20, noise_draws=0)
COHORT = Cohort("ct-rate", "valid", "zero-shot", "published", "20261127T000000000000-abc", 100, 90)
RULE = DecisionRule("Emphysema", 0.25, 2.0, 1.0, 0.8, 0.7, 100, 20)
RNG = np.random.default_rng(0)
PATIENTS = [f"p{number // 2}" for number in range(400)]  # two volumes each
TRUTH = (RNG.random((400, 2)) < [0.3, 0.1]).astype(float)
SCORES = 0.002 / (1 + np.exp(-RNG.normal(2 * TRUTH - 1, 1)))  # ranks well, and far too small
FITS = draw_choosers(PATIENTS, CONFIG)


def fit(labels: np.ndarray, scores: np.ndarray = SCORES):
    return fit_rules(["a", "b"], labels, scores, PATIENTS, CONFIG)


def test_sensitivity_and_specificity_are_counted_on_patients_who_fitted_nothing():
    thresholds = choose_thresholds(TRUTH[FITS], SCORES[FITS])
    for column, rule in enumerate(fit(TRUTH)):
        truth, decided = TRUTH[~FITS, column] == 1, SCORES[~FITS, column] >= thresholds[column]
        assert rule.threshold == thresholds[column]
        assert rule.sensitivity == pytest.approx(decided[truth].mean())
        assert rule.specificity == pytest.approx((~decided[~truth]).mean())
        assert rule.sensitivity_low < rule.sensitivity < rule.sensitivity_high
        assert (rule.n, rule.n_positive) == (len(truth), truth.sum())
        assert rule.count_patients + rule.count_fitting == 200
        assert {patient for patient, fits in zip(PATIENTS, FITS, strict=True) if fits}.isdisjoint(
            patient for patient, fits in zip(PATIENTS, FITS, strict=True) if not fits
        )


def test_labels_of_counted_patients_move_neither_threshold_nor_calibration():
    turned = np.where(FITS[:, None], TRUTH, 1 - TRUTH)
    for before, after in zip(fit(TRUTH), fit(turned), strict=True):
        assert (before.threshold, before.slope, before.intercept) == (after.threshold, after.slope, after.intercept)
        assert before.sensitivity != after.sensitivity


def test_calibration_is_the_maximum_likelihood_of_platt_s_targets():
    truth, scores = TRUTH[:, 0], SCORES[:, 0]
    x, positives = np.log(scores / (1 - scores)), truth.sum()
    targets = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2))

    def loss(parameters: np.ndarray) -> float:
        margin = parameters[0] * (x - x.mean()) + parameters[1]
        return float(np.sum(np.logaddexp(0, margin) - targets * margin))

    slope, shifted = minimize(loss, [0.0, 0.0], tol=1e-12).x
    assert fit_platt(truth, scores) == pytest.approx((slope, shifted - slope * x.mean()), rel=1e-3)


def test_calibration_mends_scores_that_are_too_small():
    for rule in fit(TRUTH):
        assert rule.brier_calibrated < 0.9 * rule.brier_score


@pytest.mark.parametrize("scores", [[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.9, 0.8, 0.2, 0.1]])
def test_calibration_is_finite_and_never_turns_the_order_around(scores):
    slope, intercept = fit_platt(np.array([0.0, 0, 1, 1]), np.array(scores))
    assert 0 <= slope < math.inf
    assert math.isfinite(intercept)
    rule = dataclasses.replace(RULE, slope=slope, intercept=intercept)
    assert 0 < rule.calibrate(0.0) <= rule.calibrate(0.5) <= rule.calibrate(1.0) < 1


def test_label_of_one_class_has_no_rule():
    labels = TRUTH.copy()
    labels[:, 1] = 0
    assert (fit(labels)[1].threshold, fit(labels)[1].slope) == (None, None)
    labels[:, 1] = np.where(FITS, TRUTH[:, 1], 0)  # positives fitted it, and none is left to be counted
    assert (fit(labels)[1].threshold is None, fit(labels)[1].sensitivity) == (False, None)
    labels[:, 1] = np.nan
    assert fit(labels)[1].threshold is None


@pytest.mark.parametrize(
    ("threshold", "score", "is_present"),
    [(0.0, 0.0, True), (1.0, 1.0, True), (1.0, 0.999999, False), (0.25, 0.25, True), (0.25, 0.2499, False)],
)
def test_a_score_from_the_threshold_on_is_present(threshold, score, is_present):
    decision = Decision("Emphysema", score, dataclasses.replace(RULE, threshold=threshold))
    assert decision.is_present is is_present
    assert decision.word == ("present" if is_present else "absent")
    assert 0 <= decision.probability <= 1


def test_probability_is_the_logistic_function_of_slope_and_intercept():
    assert Decision("Emphysema", 0.5, RULE).probability == pytest.approx(1 / (1 + math.exp(-1)))
    assert Decision("Emphysema", 0.2, RULE).probability == pytest.approx(1 / (1 + math.exp(2 * math.log(4) - 1)))


def test_abnormality_without_a_rule_is_undecided():
    found = decide(np.linspace(0, 1, 18), Decisions("w", COHORT, (RULE,)))
    assert [decision.abnormality for decision in found] == list(ABNORMALITIES)
    assert [decision.abnormality for decision in found if decision.is_present is not None] == ["Emphysema"]
    assert {decision.word for decision in decide(np.full(18, 0.9), None)} == {"undecided"}


def test_decisions_travel_with_the_folder_and_only_with_their_weights(tmp_path):
    assert read_decisions(tmp_path, "w") is None
    decisions = Decisions("w", COHORT, (RULE,))
    write_decisions(tmp_path, decisions)
    assert read_decisions(tmp_path, "w") == decisions
    with pytest.raises(CheckpointError, match="belongs to other weights"):
        read_decisions(tmp_path, "v")
    both = dataclasses.replace(decisions, others=(Decisions("w", COHORT, (RULE,), "own", "f"),))
    write_decisions(tmp_path, both.of_weights("v"))
    found = read_decisions(tmp_path, "v")
    assert found.of_weights("w") == both
    assert {one.weights_sha256 for one in found.by_set.values()} == {"v"}


def test_file_of_before_label_sets_is_read_and_rows_of_predictions_stay(tmp_path):
    decisions = Decisions("w", COHORT, (RULE,))
    before = {"weights_sha256": "w", "cohort": dataclasses.asdict(COHORT), "rules": [dataclasses.asdict(RULE)]}
    (tmp_path / DECISIONS_FILE).write_text(json.dumps(before))
    assert find_decisions(tmp_path, "w") == decisions
    assert compute_fingerprint(decisions.parts) == compute_fingerprint(before)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 1.5}, {"threshold": math.nan}, {"slope": -1.0}, {"slope": math.inf}, {"sensitivity": -0.1},
        {"abnormality": "Fracture"}, {"threshold": "low"}, {"colour": 1},
    ],
)  # fmt: skip
def test_damaged_decisions_are_refused_by_name(tmp_path: Path, change):
    write_decisions(tmp_path, Decisions("w", COHORT, (RULE,)))
    text = json.loads((tmp_path / DECISIONS_FILE).read_text())
    text["rules"][0] |= change
    (tmp_path / DECISIONS_FILE).write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match="run `ctclip evaluate` with this model"):
        read_decisions(tmp_path, "w")
    (tmp_path / DECISIONS_FILE).write_text('{"weights_sha256":')
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_decisions(tmp_path, "w")
