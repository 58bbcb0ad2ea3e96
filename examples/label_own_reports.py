"""A labeller of your own on reports of your own. It learns from hand labels in seconds and needs no weights.

python examples/label_own_reports.py hand_labels.csv reports.csv labels.csv

`hand_labels.csv` has the columns report_text and the 18 abnormalities (0 or 1). `reports.csv` has report_text alone.
"""

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np

from ctclip_model import load_labeller
from ctclip_model.config import TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.labelling.tfidf import train_tfidf_labeller


def read(table: str) -> list[dict[str, str]]:
    with Path(table).open(newline="") as file:
        return list(csv.DictReader(file))


def main(hand_labels: str, reports: str, labels: str) -> None:
    """Trains on the hand labels and writes the abnormalities of each report, with their probabilities."""
    known, asked = read(hand_labels), [row["report_text"] for row in read(reports)]
    values = np.array([[int(row[name]) for name in ABNORMALITIES] for row in known], np.int8)
    with tempfile.TemporaryDirectory() as folder:
        train_tfidf_labeller([row["report_text"] for row in known], values, TfidfConfig(), Path(folder))
        labeller = load_labeller(folder)
    probabilities = labeller.label(asked)
    with Path(labels).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["report_text", "present"])
        for text, row in zip(asked, probabilities, strict=True):
            present = np.flatnonzero(row >= labeller.thresholds)
            writer.writerow([text, "; ".join(f"{ABNORMALITIES[index]} {row[index]:.2f}" for index in present)])


if __name__ == "__main__":
    main(*sys.argv[1:])
