"""Metrics, intervals and comparisons, against scikit-learn, SciPy and the published code."""

import dataclasses
import json

import numpy as np
import pytest
from bench_coverage import Setting, delong, draw
from bench_coverage import scored as scored_replicates
from bench_intervals import plain_metrics
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics
from support.paths import GOLDEN

from ctclip_model.config import EvaluationConfig
from ctclip_model.evaluation import metrics
from ctclip_model.evaluation.curves import curves
from ctclip_model.evaluation.weighted import METRICS, Items, weighted_metrics

GOLDEN_METRICS = GOLDEN / "evaluation" / "golden_metrics"
CONFIG = EvaluationConfig(noise_draws=200)


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
    thresholds = metrics.choose_thresholds(labels, predicted, grid=metrics.PUBLISHED_THRESHOLDS)
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
    published = metrics.choose_thresholds(labels, probabilities, grid=metrics.PUBLISHED_THRESHOLDS)
    assert published == pytest.approx([69 / 99])
    labels, probabilities = np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([[0.1], [0.2], [0.3], [0.4]])
    assert metrics.choose_thresholds(labels, probabilities) == [0.4]  # 0.2 lies as near to the corner


@pytest.mark.parametrize("factor", [1.0, 1e-2, 1e-9, 1e-300])
@pytest.mark.parametrize("shift", [0, 1], ids=["near 0", "near 1"])
def test_thresholds_are_the_curves_own_points_at_any_scale(factor, shift):
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 1)) < 0.3).astype(float)
    scores = np.clip(0.3 * labels + 0.7 * rng.random((200, 1)), 0, 1).round(2)
    probabilities = (1 - factor + factor * scores) if shift and factor > 1e-12 else factor * scores
    false_alarms, recall, points = sklearn_metrics.roc_curve(labels, probabilities, drop_intermediate=False)
    (threshold,) = metrics.choose_thresholds(labels, probabilities)
    assert threshold == points[np.argmin(np.hypot(false_alarms, 1 - recall))]
    assert (probabilities[labels == 1] >= threshold).mean() > 0.5


def test_the_published_grid_decides_nothing_for_small_probabilities(scored):
    threshold = metrics.choose_thresholds(scored.labels, scored.probabilities / 100, grid=metrics.PUBLISHED_THRESHOLDS)
    assert threshold == pytest.approx([1.0, 1.0])


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


def test_interval_of_a_share_is_wilsons():
    labels = np.ones((200, 1))
    labels[:80] = 0
    probabilities = np.full((200, 1), 0.6)  # hits are the positives
    row = row_of(metrics.score(metrics.Scored(["a"], labels, probabilities, np.array([0.5]), "", range(200)), CONFIG),
                 "a", "accuracy")  # fmt: skip
    expected = binomtest(120, 200).proportion_ci(method="wilson")
    assert (row.ci_low, row.ci_high) == pytest.approx((expected.low, expected.high), abs=0.002)


def test_interval_of_a_large_auroc_is_delongs():
    setting = Setting(2000, 800, per_patient=2)
    sample = draw(setting, 1, np.random.default_rng(0))
    row = row_of(metrics.score(scored_replicates(sample, 0.0), CONFIG), "0", "auroc")
    value, error = delong(sample.labels[:, 0], sample.scores[:, 0], sample.patients)
    assert row.value == pytest.approx(value)
    assert (row.ci_low, row.ci_high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.004)


def cover(rows, metric, truth):
    """The share of the labels' intervals that hold the truth."""
    own = [row for row in rows if row.metric == metric and row.abnormality not in ("macro", "micro")]
    return np.mean([row.ci_low <= truth <= row.ci_high for row in own])


@pytest.mark.parametrize("auroc", [0.6, 0.75, 0.97])
@pytest.mark.parametrize(
    ("scans", "positives", "per_patient"), [(239, 5, 1), (60, 5, 1), (239, 12, 1), (240, 18, 3), (60, 54, 1)]
)
def test_intervals_of_few_positives_cover_the_auroc(scans, positives, per_patient, auroc):
    sample = draw(Setting(scans, positives, per_patient, auroc), 200, np.random.default_rng(0))
    assert cover(metrics.score(scored_replicates(sample, 0.0), CONFIG), "auroc", auroc) >= 0.93


@pytest.mark.parametrize("positives", [1, 3, 4, 5, 57])
def test_a_perfect_ranking_of_few_patients_is_uncertain_and_marked(positives):
    labels = (np.arange(60) < positives).astype(float)[:, None]
    scored = metrics.Scored(["a"], labels, 0.9 * labels, np.array([0.5]), "", range(60))
    row = row_of(metrics.score(scored, CONFIG), "a", "auroc")
    assert row.value == row.ci_high == 1
    assert row.ci_low < 0.75
    assert row.has_few_patients == (min(positives, 60 - positives) < metrics.FEW_PATIENTS)


def test_scans_of_one_patient_do_not_make_many():
    labels = np.zeros((60, 1))
    labels[:20] = 1
    patients = [*np.repeat(range(4), 5), *range(4, 44)]
    scored = metrics.Scored(["a"], labels, np.linspace(1, 0, 60)[:, None], np.array([0.5]), "", patients)
    assert row_of(metrics.score(scored, CONFIG), "a", "auroc").has_few_patients


def draw_calibrated(shift, count=150, scans=300):
    """Labels as frequent as their probabilities less `shift`, which so is the calibration error."""
    rng = np.random.default_rng(0)
    frequency = 0.7 * rng.random((scans, count))
    labels = (rng.random((scans, count)) < frequency).astype(float)
    names = [str(number) for number in range(count)]
    return metrics.Scored(names, labels, frequency + shift, np.full(count, 0.5), "", range(scans))


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.25])
def test_interval_of_the_calibration_error_covers_and_its_estimate_has_little_bias(shift):
    scored = draw_calibrated(shift)
    rows = metrics.score(scored, CONFIG)
    assert cover(rows, "calibration_error", shift) >= 0.93
    own = [row for row in rows if row.metric == "calibration_error"]
    assert all(row.ci_low <= row.value <= row.ci_high for row in own)
    plain = metrics.score(scored, dataclasses.replace(CONFIG, noise_draws=0))
    bias, plain_bias = (
        abs(np.mean([row.value for row in some if row.metric == "calibration_error"]) - shift) for some in (rows, plain)
    )
    assert bias <= plain_bias + 0.005
    assert bias < 0.03


@pytest.mark.parametrize(
    ("scans", "probabilities", "rates", "share"),
    [(100, (0.05, 0.9), (0.005, 0.9), 0.05), (100, (0.0, 1.0), (0.02, 0.98), 0.2), (60, (0.0, 1.0), (0.97, 0.03), 0.5)],
    ids=["few positives", "no errors by chance", "no truth by chance"],
)
def test_interval_of_the_calibration_error_covers_where_bins_are_pure(scans, probabilities, rates, share):
    rng = np.random.default_rng(1)
    is_high = (rng.random((scans, 150)) < share).astype(int)
    labels = (rng.random(is_high.shape) < np.array(rates)[is_high]).astype(float)
    names = [str(number) for number in range(150)]
    scored = metrics.Scored(names, labels, np.array(probabilities)[is_high], np.full(150, 0.5), "", range(scans))
    truth = float(np.abs(np.subtract(probabilities, rates)) @ [1 - share, share])
    rows = [row for row in metrics.score(scored, CONFIG) if row.ci_low is not None]
    assert cover(rows, "calibration_error", truth) >= 0.93


def test_no_value_lies_outside_its_interval():
    rng = np.random.default_rng(0)
    for scans in (2, 3, 5, 12, 40):
        for kind in range(4):
            labels = (rng.random((scans, 20)) < rng.random(20)).astype(float)
            probabilities = [
                labels, 1 - labels, rng.random(labels.shape).round(1), np.full(labels.shape, rng.random())
            ][kind]  # fmt: skip
            patients = rng.integers(max(1, scans // 2), size=scans)
            names = [str(number) for number in range(20)]
            scored = metrics.Scored(names, labels, probabilities, np.full(20, 0.5), "", patients)
            for row in metrics.score(scored, CONFIG):
                assert (row.ci_low is None) == (row.ci_high is None) == (row.ci_method is None)
                assert row.ci_low is None or 0 <= row.ci_low <= row.value <= row.ci_high <= 1, row


def test_a_model_does_not_differ_from_itself_and_a_better_one_does(scored):
    same = metrics.compare(scored, scored, CONFIG)
    assert all((row.difference, row.ci_low, row.p_value) == (0, 0, 1) for row in same if row.ci_low is not None)
    assert {row.metric for row in same if row.ci_low is None} == {"calibration_error"}
    better = dataclasses.replace(scored, probabilities=0.9 * scored.labels)
    blind = dataclasses.replace(scored, probabilities=np.random.default_rng(1).random((60, 2)))
    row = row_of(metrics.compare(better, blind, CONFIG), "a", "auroc")
    expected = 1 - sklearn_metrics.roc_auc_score(scored.labels[:, 0], blind.probabilities[:, 0])
    assert row.difference == pytest.approx(expected)
    assert row.ci_low > 0
    assert 0 < row.p_value < 0.01
    assert row.p_value < row.p_value_holm <= 2 * row.p_value
    assert (row.n, row.count_patients) == (60, 30)
    with pytest.raises(ValueError, match="same items"):
        metrics.compare(better, dataclasses.replace(scored, patients=np.arange(60)), CONFIG)


def test_holm_multiplies_the_least_by_the_number_of_tests():
    assert metrics.holm(np.array([0.04, 0.01, np.nan, 0.03])) == pytest.approx([0.06, 0.03, np.nan, 0.06], nan_ok=True)


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
