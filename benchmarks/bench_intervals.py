"""Every metric of CT-RATE's validation split with its intervals: scikit-learn in a loop, and ours.

Both ways compute the same metrics without the same groups of patients. All groups would take the loop minutes, so it
sees a few of them and its time is scaled up. Scores are rounded, so many are tied. One label has a single patient, and
without that patient no value.

Usage: python benchmarks/bench_intervals.py [groups of the loop]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from measure import in_turn, machine, seconds
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from ctclip_model.config import EvaluationConfig
from ctclip_model.evaluation import metrics
from ctclip_model.evaluation.jackknife import Jackknife
from ctclip_model.evaluation.weighted import METRICS, weighted_metrics

VOLUMES, PATIENTS, LABELS, RUNS = 3039, 1304, 18, 3
LIMIT_S, WANTED_RATIO, TOLERANCE = 10.0, 30.0, 1e-12
CONFIG = EvaluationConfig()
COMPARED = [name for name in METRICS if name != "calibration_error"]  # scikit-learn has no calibration error


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    scored = make_up()
    jackknife = Jackknife.draw(scored.patients, CONFIG)
    items = scored.items(jackknife.patients)
    is_rare = jackknife.left_out[:, jackknife.patients[scored.labels[:, -1] == 1]].any(axis=1)
    left_out = jackknife.left_out[np.argsort(is_rare, kind="stable")]  # the rare patient's group comes first
    results: dict[str, NDArray[np.float64]] = {}

    def loop() -> None:
        results["loop"] = np.stack(
            [[loop_metrics(scored, label, weights[jackknife.patients]) for label in range(LABELS)]
             for weights in left_out[:count]]
        )  # fmt: skip

    def ours() -> None:
        results["ours"] = np.stack(
            [weighted_metrics(one, left_out, calibration_bins=CONFIG.calibration_bins) for one in items], axis=1
        )  # (groups, labels, metrics)

    times = in_turn({"loop": loop, "ours": ours}, RUNS)
    found = results["ours"][:count, :, [METRICS.index(name) for name in COMPARED]]
    assert np.array_equal(np.isnan(found), np.isnan(results["loop"]))
    difference = float(np.nanmax(np.abs(found - results["loop"])))
    assert difference <= TOLERANCE
    assert np.isnan(results["ours"][0, -1, 0]), "the label of one patient has a value without it"
    times["loop"] *= len(left_out) / count
    ratio = times["loop"] / times["ours"]
    print(f"{VOLUMES} volumes x {LABELS} labels x {len(left_out)} groups, {machine()}, median of {RUNS}")
    print(f"  scikit-learn in a loop, scaled up from {count} groups {times['loop']:7.1f} s   "
          f"ours {times['ours']:5.2f} s   {ratio:5.0f} x (asked: {WANTED_RATIO:g} x)")  # fmt: skip
    print(f"  equal within {difference:.0e}, a group of one class included")
    total_s = in_turn({"score": lambda: metrics.score(scored, CONFIG)}, RUNS)["score"]
    print(f"  all metrics, macro and micro, with intervals: {total_s:.2f} s (asked: {LIMIT_S:g} s)")
    paired = seconds(lambda: metrics.compare(scored, make_up(seed=1, labels=scored.labels), CONFIG))
    print(f"  paired difference of two models: {paired:.2f} s, once")


def make_up(seed: int = 0, labels: NDArray[np.float64] | None = None) -> metrics.Scored:
    """Scores of AUROC about 0.75 for as many volumes and patients as CT-RATE's validation split has."""
    rng = np.random.default_rng(seed)
    if labels is None:
        labels = (rng.random((VOLUMES, LABELS)) < np.linspace(0.05, 0.6, LABELS)).astype(float)
        labels[:, -1] = np.arange(VOLUMES) == 0
    probabilities = np.clip(0.2 * labels + 0.8 * rng.random(labels.shape), 0, 1).round(3)
    patients = np.sort(
        np.concatenate([np.arange(PATIENTS), np.random.default_rng(2).integers(PATIENTS, size=VOLUMES - PATIENTS)])
    )
    names = [f"label {number}" for number in range(LABELS)]
    return metrics.Scored(names, labels, probabilities, np.full(LABELS, 0.5), "train", [str(p) for p in patients])


def loop_metrics(scored: metrics.Scored, label: int, repeats: NDArray[np.int32]) -> list[float]:
    """scikit-learn's metrics of one label over repeated items, in the order of COMPARED. A single class gives nan."""
    truth, scores = scored.labels[:, label].repeat(repeats), scored.probabilities[:, label].repeat(repeats)
    if len(set(truth)) < 2:
        return [np.nan] * len(COMPARED)
    return plain_metrics(truth, scores, (scores >= scored.thresholds[label]).astype(float))


def plain_metrics(truth: NDArray[Any], scores: NDArray[Any], decisions: NDArray[Any]) -> list[float]:
    """scikit-learn's metrics of one label, in the order of COMPARED."""
    return [
        sklearn_metrics.roc_auc_score(truth, scores),
        sklearn_metrics.average_precision_score(truth, scores),
        sklearn_metrics.f1_score(truth, decisions, zero_division=0),
        sklearn_metrics.f1_score(truth, decisions, average="weighted", zero_division=0),
        sklearn_metrics.accuracy_score(truth, decisions),
        sklearn_metrics.precision_score(truth, decisions, zero_division=0),
        sklearn_metrics.recall_score(truth, decisions),
        sklearn_metrics.recall_score(truth, decisions, pos_label=0),
        sklearn_metrics.brier_score_loss(truth, scores),
    ]


if __name__ == "__main__":
    main()
