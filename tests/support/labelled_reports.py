"""Small reports of known abnormalities, for the tests of labellers."""

import numpy as np

from ctclip_model.data.abnormalities import ABNORMALITIES

SIGNS = ("pleural effusion", "a nodule", "emphysema")
COLUMNS = [ABNORMALITIES.index(name) for name in ("Pleural effusion", "Lung nodule", "Emphysema")]


def write_reports(count, seed):
    """Reports that state or deny three of the abnormalities."""
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
