"""Small radiology reports of known abnormalities, and files of hand labels."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctclip_model.data.abnormalities import ABNORMALITIES

SIGNS = ("pleural effusion", "a nodule", "emphysema")
COLUMNS = [ABNORMALITIES.index(name) for name in ("Pleural effusion", "Lung nodule", "Emphysema")]
HAND_LABEL_COLUMNS = ("AccessionNo", "report_text", *ABNORMALITIES)


def write_reports(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Reports that state or deny three of the abnormalities, and their labels, int8 (count, 18)."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((count, len(ABNORMALITIES)), np.int8)
    labels[:, COLUMNS] = rng.random((count, 3)) < 0.4
    reports = []
    for row in labels[:, COLUMNS]:
        sentences = [
            f"There is {sign}." if found else f"There is no {sign}." for sign, found in zip(SIGNS, row, strict=True)
        ]
        reports.append(" ".join([*rng.permutation(sentences), f"Slice {rng.integers(1000)}."]))
    return reports, labels


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], encoding: str = "utf-8") -> Path:
    """Writes a table, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_hand_labels(path: Path, rows: Iterable[Sequence[Any]], **options: Any) -> Path:
    """Writes a file of hand labels; a row is a report's name, its text and 18 labels."""
    return write_csv(path, HAND_LABEL_COLUMNS, rows, **options)
