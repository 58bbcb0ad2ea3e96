"""Metrics, intervals and comparisons, against scikit-learn, SciPy and the published code."""

import dataclasses
import json

import numpy as np
import pytest
from bench_bootstrap import plain_metrics
from scipy.stats import bootstrap
from sklearn import metrics as sklearn_metrics
from support.paths import GOLDEN

from ctclip_model.config import EvaluationConfig
from ctclip_model.evaluation import metrics
from ctclip_model.evaluation.bootstrap import Resamples, holm
from ctclip_model.evaluation.curves import curves
from ctclip_model.evaluation.weighted import METRICS, Items, weighted_metrics

GOLDEN_METRICS = GOLDEN / "evaluation" / "golden_metrics"
CONFIG = EvaluationConfig(resamples=200)


@pytest.fixture
def scored():
    """60 scans of 30 patients, two labels, tied probabilities."""
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 2)) < 0.4).astype(float)
    probabilities = np.clip(0.3 * labels + rng.random((60, 2)) * 0.7, 0, 1).round(1)
    patients = np.repeat(np.arange(30), 2)
    return metrics.Scored(["a", "b"], labels, probabilities, np.array([0.5, 0.4]), "train", patients)


def row_of(rows, abnormality, metric):
    (row,) = [row for row in rows if (row.abnormality, row.metric) == (abnormality, metric)]
    return row


def value_of(rows, abnormality, metric):
    return row_of(rows, abnormality, metric).value


def test_published_metrics_are_reproduced():
    arrays = np.load(GOLDEN_METRICS.with_suffix(".npz"))
    labels, predicted = arrays["labels"].astype(float), arrays["predicted"].astype(float)
    names = [str(index) for index in range(18)]
    thresholds = metrics.choose_thresholds(labels, predicted)
    rows = metrics.score(metrics.Scored(names, labels, predicted, thresholds, "scored", range(len(labels))), CONFIG)
    for index, expected in enumerate(json.loads(GOLDEN_METRICS.with_suffix(".json").read_text())["classification"]):
        expected["weighted_f1"] = expected.pop("f1_weighted")
        assert thresholds[index] == pytest.approx(expected.pop("threshold"), abs=1e-12)
        found = {metric: value_of(rows, str(index), metric) for metric in expected}
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("digits", [1, 9], ids=["ties", "no ties"])
def test_weighted_metrics_are_scikit_learns_of_the_repeated_items(digits):
    rng = np.random.default_rng(1)
    labels = rng.random(60) < 0.4
    probabilities = rng.random(60).round(digits)
    decisions = (probabilities >= 0.5).astype(float)
    weights = rng.integers(0, 4, size=(6, 30)).astype(np.int32)
    patients = np.repeat(np.arange(30), 2)
    weights[5] = 0
    weights[5, patients[labels][:1]] = 1  # one patient
    labels[patients == patients[labels][0]] = True  # leaves this resample one class
    found = weighted_metrics(Items(labels, probabilities, decisions, patients), weights, calibration_bins=10)
    for row, weight in zip(found[:5], weights, strict=False):
        repeats = weight[patients]
        again = [values.repeat(repeats) for values in (labels.astype(int), probabilities, decisions)]
        assert row[:-1] == pytest.approx(plain_metrics(*again), abs=1e-12)
    assert np.isnan(found[5]).all()


def test_calibration_error_is_the_mean_gap_between_probability_and_frequency():
    labels = np.array([True, False, False, True])
    items = Items(labels, np.array([0.9, 0.9, 0.1, 1.0]), np.full(4, np.nan), np.arange(4))
    (row,) = weighted_metrics(items, np.ones((1, 4), np.int32), calibration_bins=2)
    assert row[METRICS.index("calibration_error")] == pytest.approx((abs(0.9 + 0.9 + 1.0 - 2) + 0.1) / 4)
    assert np.isnan(row[METRICS.index("accuracy")])  # nothing is decided


def test_of_equally_good_thresholds_the_largest_is_chosen():
    labels, probabilities = np.array([[0.0], [1.0]]), np.array([[0.2], [0.7]])
    assert metrics.choose_thresholds(labels, probabilities) == pytest.approx([69 / 99])


def test_a_label_of_one_class_is_null_and_out_of_macro_and_micro(scored):
    scored.labels[:, 1] = 1
    assert np.isnan(metrics.choose_thresholds(scored.labels, scored.probabilities)[1])
    rows = metrics.score(scored, CONFIG)
    assert all(row.value is None and row.ci_low is None for row in rows if row.abnormality == "b")
    for pooled in ("macro", "micro"):
        for metric in METRICS:
            assert value_of(rows, pooled, metric) == pytest.approx(value_of(rows, "a", metric), abs=1e-12)
    assert row_of(rows, "micro", "auroc").n == 60


def test_micro_pools_all_pairs_of_items_and_labels(scored):
    expected = sklearn_metrics.roc_auc_score(scored.labels.ravel(), scored.probabilities.ravel())
    row = row_of(metrics.score(scored, CONFIG), "micro", "auroc")
    assert (row.value, row.n, row.n_positive) == (pytest.approx(expected), 120, int(scored.labels.sum()))


def test_an_unknown_label_does_not_count(scored):
    known = scored.labels[10:, 0].copy()
    scored.labels[:10, 0] = np.nan
    rows = metrics.score(scored, CONFIG)
    expected = sklearn_metrics.roc_auc_score(known, scored.probabilities[10:, 0])
    assert value_of(rows, "a", "auroc") == pytest.approx(expected, abs=1e-12)
    assert {row.n for row in rows if row.abnormality == "a"} == {50}
    assert {row.n for row in rows if row.abnormality in ("b", "macro")} == {60}


def test_patients_who_chose_the_thresholds_count_for_ranking_alone(scored):
    choosers = metrics.draw_choosers(scored.patients, CONFIG)
    assert choosers.sum() == 30  # half the patients, whole
    assert (choosers[::2] == choosers[1::2]).all()
    rows = metrics.score(dataclasses.replace(scored, is_decided=~choosers), CONFIG)
    truth, decisions = scored.labels[~choosers, 0], scored.probabilities[~choosers, 0] >= 0.5
    assert value_of(rows, "a", "accuracy") == pytest.approx((truth == decisions).mean())
    assert (row_of(rows, "a", "accuracy").n, row_of(rows, "a", "auroc").n) == (30, 60)


def test_intervals_resample_patients_and_not_scans(scored):
    once = dataclasses.replace(scored, patients=range(60))
    copies = {"labels": scored.labels.repeat(8, 0), "probabilities": scored.probabilities.repeat(8, 0)}
    often = dataclasses.replace(scored, **copies, patients=np.arange(60).repeat(8))  # copies say nothing new
    for one, other in zip(metrics.score(once, CONFIG), metrics.score(often, CONFIG), strict=True):
        assert (one.ci_low, one.ci_high) == pytest.approx((other.ci_low, other.ci_high))


def test_intervals_hold_their_value_and_repeat_with_the_seed(scored):
    rows = metrics.score(scored, CONFIG)
    assert rows == metrics.score(scored, CONFIG)
    assert rows != metrics.score(scored, dataclasses.replace(CONFIG, seed=1))
    assert all(row.ci_low < row.value < row.ci_high for row in rows if row.metric == "auroc")


def test_intervals_are_scipys():
    values = np.random.default_rng(0).exponential(size=50)
    resamples = Resamples.draw(range(50), EvaluationConfig(resamples=20_000))
    estimate = resamples.estimate(lambda weights: (weights @ values / weights.sum(axis=1))[:, None])
    for method, ours in (("percentile", estimate.percentile_intervals()), ("bca", estimate.bca_intervals())):
        expected = bootstrap((values,), np.mean, n_resamples=20_000, method=method, rng=1).confidence_interval
        assert ours[:, 0] == pytest.approx(expected, abs=0.02)


def test_a_model_does_not_differ_from_itself_and_a_better_one_does(scored):
    same = metrics.compare(scored, scored, CONFIG)
    assert all((row.difference, row.ci_low, row.p_value) == (0, 0, 1) for row in same)
    better = dataclasses.replace(scored, probabilities=0.9 * scored.labels)
    row = row_of(metrics.compare(better, scored, CONFIG), "a", "auroc")
    expected = 1 - sklearn_metrics.roc_auc_score(scored.labels[:, 0], scored.probabilities[:, 0])
    assert row.difference == pytest.approx(expected)
    assert (row.p_value, row.p_value_holm) == pytest.approx((2 / 201, 4 / 201))
    assert (row.n, row.count_patients) == (60, 30)
    with pytest.raises(ValueError, match="same items"):
        metrics.compare(better, dataclasses.replace(scored, patients=np.arange(60)), CONFIG)


def test_holm_multiplies_the_least_by_the_number_of_tests():
    assert holm(np.array([0.04, 0.01, np.nan, 0.03])) == pytest.approx([0.06, 0.03, np.nan, 0.06], nan_ok=True)


def test_curves_are_thin_and_keep_their_ends():
    rng = np.random.default_rng(0)
    labels = (rng.random((2000, 1)) < 0.3).astype(float)
    points = curves(labels, rng.random((2000, 1)), ["a"])
    for curve, ends in (("roc", [(0, 0), (1, 1)]), ("pr", [(1, pytest.approx(0.3, abs=0.05)), (0, 1)])):
        own = [point for point in points if point.curve == curve]
        assert len(own) <= 200
        assert [(own[i].x, own[i].y) for i in (0, -1)] == ends
        assert [point.point for point in own] == list(range(len(own)))


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [([[2]], [[0.5]], "0, 1 or nan"), ([[1]], [[1.1]], r"\[0, 1\]"), ([[1]], [[np.nan]], r"\[0, 1\]"),
     ([1], [0.5], r"\(N, L\)")],
)  # fmt: skip
def test_bad_values_are_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        metrics.choose_thresholds(np.array(labels, float), np.array(probabilities, float))
