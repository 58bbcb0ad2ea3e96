"""Layout and language: labels of the same reports in other layouts, and of sentences of known truth by phenomenon.

Usage: python benchmarks/bench_labeller_language.py [--reports HAND_LABELS.csv] [--roberta EPOCHS] [LABELLER ...]

Without a labeller, tf-idf is measured: layouts in five folds of the hand-labelled reports, sentences by a labeller of
all reports. `--roberta` trains the tiny preset on four folds and measures it on the fifth. A LABELLER is the folder of
one, or published weights. It is measured on all reports, which it may have been trained on: compare layouts alone.

`data/stress_sentences.toml` has the sentences. Its rules were tuned on the seen half. The other half is a check.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from bench_tfidf_labeller import DEFAULT, FOLDS
from numpy.typing import NDArray
from report_forms import FORMS, read_sentences
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold

from ctclip_model.config import PRESETS, TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.labelling.labeller import Labeller, load_labeller
from ctclip_model.labelling.tfidf import train_tfidf_labeller
from ctclip_model.training.labeller import train_labeller
from tasks.labels.hand_labels import read_hand_labels

Values = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, default=DEFAULT, help="CSV of hand-labelled reports")
    parser.add_argument(
        "--roberta", type=int, metavar="EPOCHS", help="train the tiny preset's labeller, and measure it"
    )
    parser.add_argument("labellers", nargs="*", type=Path, help="folders of labellers, or published weights")
    options = parser.parse_args()
    reports = read_hand_labels(options.reports) if options.reports.is_file() else None
    if reports is None:
        print(f"no layouts, nothing trained: {options.reports} with hand-labelled reports does not exist")
    texts, labels = (np.array(reports.texts), reports.labels) if reports else (np.array([]), np.empty((0, 18), int))
    for labeller in map(load_labeller, options.labellers):
        if reports:
            show_layouts(labels, partial(read_all, labeller, texts), labeller.labeller_id)
        show_phenomena(labeller)
    if reports and not options.labellers:
        measure_roberta(texts, labels, options.roberta) if options.roberta else measure_tfidf(texts, labels)


def measure_tfidf(texts: NDArray[np.str_], labels: NDArray[np.int8]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, fitted = Path(name) / "tf-idf", []
        for training, held in split(texts):
            train_tfidf_labeller(texts[training].tolist(), labels[training], TfidfConfig(), folder)
            fitted.append((load_labeller(folder), held))

        def read_held_out(write: Callable) -> Values:
            values = np.zeros(labels.shape, bool)
            for fold, (labeller, held) in enumerate(fitted):
                values[held] = read_all(labeller, texts[held], write, fold)
            return values

        show_layouts(labels, read_held_out, f"tf-idf, {FOLDS} folds")
        train_tfidf_labeller(texts.tolist(), labels, TfidfConfig(), folder)
        show_phenomena(load_labeller(folder))


def measure_roberta(texts: NDArray[np.str_], labels: NDArray[np.int8], epochs: int) -> None:
    training, held = split(texts)[0]
    config = replace(PRESETS["tiny"]().labeller, epochs=epochs, patience=epochs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "RoBERTa-tiny"
        train_labeller(texts[training].tolist(), labels[training], config, folder)
        labeller = load_labeller(folder)
    show_layouts(labels[held], partial(read_all, labeller, texts[held]), "RoBERTa, held-out fold")
    show_phenomena(labeller)


def split(texts: NDArray[np.str_]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return list(GroupKFold(FOLDS, shuffle=True, random_state=0).split(texts, groups=texts))


def read_all(labeller: Labeller, texts: Sequence[str], write: Callable = FORMS["as given"], seed: int = 0) -> Values:
    rng = np.random.default_rng(seed)
    return labeller.label([write(text, rng) for text in texts]) >= labeller.thresholds


def show_layouts(labels: NDArray[np.int8], read_form: Callable[[Callable], Values], name: str) -> None:
    """Prints macro F1 of each layout, and the share of reports with another label than as given."""
    given = read_form(FORMS["as given"])
    print(f"{name + ', ' + str(len(labels)) + ' reports':40} macro F1  difference  reports changed")
    for form, write in FORMS.items():
        values = read_form(write)
        f1, given_f1 = (f1_score(labels, each, average="macro", zero_division=0) for each in (values, given))
        changed = (values != given).any(axis=1).mean()
        print(f"{form:40} {f1:8.3f}  {f1 - given_f1:+10.3f}  {changed:15.1%}", flush=True)


def show_phenomena(labeller: Labeller) -> None:
    """Prints the sentences that a labeller reads wrongly, by phenomenon, of the seen half and of the other."""
    sentences = list(read_sentences())
    counts, wrong = Counter(), Counter()
    for sentence, values in zip(sentences, read_all(labeller, [one.text for one in sentences]), strict=True):
        is_found = dict(zip(ABNORMALITIES, values, strict=True))
        is_wrong = not all(map(is_found.get, sentence.present)) or any(map(is_found.get, sentence.absent))
        kind = "with a finding" if sentence.present else "without a finding"
        for group in (sentence.phenomenon, kind, "all"):
            counts[group, sentence.is_seen] += 1
            wrong[group, sentence.is_seen] += is_wrong
    print(f"{labeller.labeller_id + ', wrong of sentences':40} {'seen half':>12} {'unseen half':>12}")
    for group in [
        *dict.fromkeys(sentence.phenomenon for sentence in sentences),
        "with a finding",
        "without a finding",
        "all",
    ]:
        halves = (f"{wrong[group, seen]} of {counts[group, seen]}" for seen in (True, False))
        print(f"{group:40} {' '.join(f'{half:>12}' for half in halves)}")
    shares = (wrong["all", seen] / counts["all", seen] for seen in (True, False))
    print(f"{'share':40} {' '.join(f'{share:12.1%}' for share in shares)}")


if __name__ == "__main__":
    main()
