import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ctclip_model.evaluation import metrics

GOLDEN = Path(__file__).parent / "golden" / "evaluation" / "golden_metrics"


@pytest.fixture
def scored():
    """60 scans of 30 patients, two labels, tied probabilities."""
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 2)) < 0.4).astype(float)
    probabilities = np.clip(0.3 * labels + rng.random((60, 2)) * 0.7, 0, 1).round(1)
    return labels, probabilities, np.repeat(np.arange(30), 2)


def value_of(rows, abnormality, metric):
    (row,) = [row for row in rows if (row.abnormality, row.metric) == (abnormality, metric)]
    return row.value


def test_published_metrics_are_reproduced():
    arrays = np.load(GOLDEN.with_suffix(".npz"))
    labels, predicted = arrays["labels"].astype(float), arrays["predicted"]
    names = [str(index) for index in range(18)]
    thresholds = metrics.choose_thresholds(labels, predicted)
    rows = metrics.score(labels, predicted, names, thresholds=thresholds, threshold_source="published")
    for index, expected in enumerate(json.loads(GOLDEN.with_suffix(".json").read_text())["classification"]):
        expected["weighted_f1"] = expected.pop("f1_weighted")
        assert thresholds[index] == pytest.approx(expected.pop("threshold"), abs=1e-12)
        found = {metric: value_of(rows, str(index), metric) for metric in expected}
        assert found == pytest.approx(expected, abs=1e-12)


def test_of_equally_good_thresholds_the_largest_is_chosen():
    labels, probabilities = np.array([[0.0], [1.0]]), np.array([[0.2], [0.7]])
    assert metrics.choose_thresholds(labels, probabilities) == pytest.approx([69 / 99])


def test_a_label_of_one_class_is_null_and_out_of_the_macro(scored):
    labels, probabilities, patients = scored
    labels[:, 1] = 1
    thresholds = metrics.choose_thresholds(labels, probabilities)
    assert np.isnan(thresholds[1])
    rows = metrics.score(
        labels, probabilities, ["a", "b"], thresholds=thresholds, threshold_source="train", patients=patients
    )
    assert all(row.value is None and row.ci_low is None for row in rows if row.abnormality == "b")
    for metric in ("auroc", "weighted_f1", "specificity"):
        assert value_of(rows, "macro", metric) == value_of(rows, "a", metric)


def test_an_unknown_label_does_not_count(scored):
    labels, probabilities, _ = scored
    known = labels[10:].copy()
    labels[:10, 0] = np.nan
    rows = metrics.score(labels, probabilities, ["a", "b"], thresholds=np.array([0.5, 0.5]), threshold_source="fixed")
    assert value_of(rows, "a", "auroc") == roc_auc_score(known[:, 0], probabilities[10:, 0])
    assert {row.n for row in rows if row.abnormality == "a"} == {50}
    assert {row.n for row in rows if row.abnormality in ("b", "macro")} == {60}


def test_a_probability_at_the_threshold_is_a_positive():
    labels, probabilities = np.array([[0.0], [1.0]]), np.array([[0.4], [0.5]])
    rows = metrics.score(labels, probabilities, ["a"], thresholds=np.array([0.5]), threshold_source="fixed")
    assert value_of(rows, "a", "recall") == value_of(rows, "a", "specificity") == value_of(rows, "a", "f1") == 1


def test_weighted_auroc_is_the_auroc_of_the_repeated_items(scored):
    labels, probabilities, _ = scored
    weights = np.random.default_rng(1).integers(0, 4, size=(5, 60)).astype(float)
    weights[4] = labels[:, 0] == 1  # one class alone
    found = metrics.weighted_auroc(labels[:, 0], probabilities[:, 0], weights)
    repeats = weights[:4].astype(int)
    expected = [roc_auc_score(labels[:, 0].repeat(r), probabilities[:, 0].repeat(r)) for r in repeats]
    assert found[:4] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[4])


def test_intervals_resample_patients_and_not_scans(scored):
    labels, probabilities, _ = scored
    copied, again = labels.repeat(8, axis=0), probabilities.repeat(8, axis=0)
    patients = np.arange(60).repeat(8)  # copies of a patient's scan say nothing new
    once = metrics.auroc_intervals(labels, probabilities, range(60), resamples=200, seed=0)
    assert metrics.auroc_intervals(copied, again, patients, resamples=200, seed=0) == pytest.approx(once)


def test_intervals_hold_their_value_and_repeat_with_the_seed(scored):
    labels, probabilities, patients = scored
    rows, again = (
        metrics.score(
            labels, probabilities, ["a", "b"], thresholds=np.array([0.5, 0.5]), threshold_source="x", patients=patients
        )
        for _ in range(2)
    )
    assert rows == again
    aurocs = [row for row in rows if row.metric == "auroc"]
    assert len(aurocs) == 3
    assert all(row.ci_low < row.value < row.ci_high for row in aurocs)


def test_curves_are_thin_and_keep_their_ends():
    rng = np.random.default_rng(0)
    labels = (rng.random((2000, 1)) < 0.3).astype(float)
    points = metrics.curves(labels, rng.random((2000, 1)), ["a"])
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
