"""The score of a labeller on held-out reports, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from ctclip_model.models.held_out import HeldOut

Labels = NDArray[Any]  # (reports, 18), 0 or 1


def macro_f1(labels: Labels, decided: Labels) -> float:
    """The mean F1 of the abnormalities that the labels show or the labeller reads. 0 without any."""
    score = f1_score(labels, decided, average="macro", zero_division=np.nan)
    return 0.0 if np.isnan(score) else float(score)


def score_labels(labels: Labels, decided: Labels, others: Mapping[str, Labels]) -> HeldOut:
    """Macro F1 of decided labels, beside labels that are always absent, always present, and those of `others`."""
    baselines = {"always absent": np.zeros_like(labels), "always present": np.ones_like(labels)} | dict(others)
    return HeldOut(
        "macro F1 on held-out reports",
        macro_f1(labels, decided),
        {name: macro_f1(labels, baseline) for name, baseline in baselines.items()},
    )
