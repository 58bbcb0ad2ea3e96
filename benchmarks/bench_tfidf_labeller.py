"""Report labellers without pretrained weights: plain TF-IDF with class weights, and ours, in the same five folds.

Usage: python benchmarks/bench_tfidf_labeller.py [HAND_LABELS.csv]

The CSV (AccessionNo, report_text and the 18 labels) holds the 800 reports that CT-RATE's authors labelled by hand. Its
licence does not allow a copy in this project. Without it nothing is measured. Reports of the same text share a fold.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import GroupKFold

from ctclip_model.config import TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.labelling.tfidf import load_tfidf_labeller, train_tfidf_labeller
from tasks.labels.hand_labels import read_hand_labels

DEFAULT = Path(__file__).parents[2] / "shared/data/text_classifier/train.csv"
PLAIN = {"words": {}, "words and pairs": {"ngram_range": (1, 2), "sublinear_tf": True}}
FOLDS = 5


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    if not path.is_file():
        print(f"nothing measured: {path} with hand-labelled reports does not exist")
        return
    reports = read_hand_labels(path)
    texts, labels = np.array(reports.texts), reports.labels
    groups = np.unique(texts, return_inverse=True)[1]
    folds = list(GroupKFold(FOLDS, shuffle=True, random_state=0).split(texts, groups=groups))
    print(f"{len(texts)} reports, {groups.max() + 1} texts, {FOLDS} folds by text  macro F1  micro F1")
    best_plain = max(show(f"plain TF-IDF, {name}", labels, read_plainly(texts, labels, folds, options))
                     for name, options in PLAIN.items())  # fmt: skip
    ours = show("ours", labels, read_with_ours(texts, labels, folds))
    print(f"{'ours less the better plain way':40}  {ours - best_plain:+8.3f}")


def show(name: str, labels: NDArray[np.int8], values: NDArray[np.bool_]) -> float:
    """Prints F1 over all folds. Returns the macro average."""
    macro, micro = (f1_score(labels, values, average=average) for average in ("macro", "micro"))
    print(f"{name:40}  {macro:8.3f}  {micro:8.3f}")
    return float(macro)


def read_plainly(texts, labels, folds, options) -> NDArray[np.bool_]:
    values = np.zeros(labels.shape, bool)
    for training, held in folds:
        vectorizer = TfidfVectorizer(**options)
        seen, unseen = vectorizer.fit_transform(texts[training]), vectorizer.transform(texts[held])
        for index in range(len(ABNORMALITIES)):
            regression = LogisticRegression(class_weight="balanced", solver="liblinear")
            values[held, index] = regression.fit(seen, labels[training, index]).predict(unseen)
    return values


def read_with_ours(texts, labels, folds) -> NDArray[np.bool_]:
    values = np.zeros(labels.shape, bool)
    calibrated, uncalibrated = np.zeros(labels.shape), np.zeros(labels.shape)
    training_s, labelling_s = [], 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "labeller"
        for training, held in folds:
            started = time.perf_counter()
            train_tfidf_labeller(texts[training].tolist(), labels[training], TfidfConfig(), folder)
            training_s.append(time.perf_counter() - started)
            labeller = load_tfidf_labeller(folder)
            started = time.perf_counter()
            calibrated[held] = labeller.label(texts[held])
            labelling_s += time.perf_counter() - started
            values[held] = calibrated[held] >= labeller.thresholds
            uncalibrated[held] = expit(labeller.logits(texts[held]))
    print(
        f"training {median(training_s):.1f} s (median of {FOLDS}); labelling {len(texts) / labelling_s:.0f} reports/s"
    )
    for kind, probabilities in (("calibrated", calibrated), ("uncalibrated", uncalibrated)):
        brier = np.mean((probabilities - labels) ** 2)
        print(f"{kind:13} Brier {brier:.4f}, log loss {log_loss(labels.ravel(), probabilities.ravel()):.4f}")
    return values


if __name__ == "__main__":
    main()
