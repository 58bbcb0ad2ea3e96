"""The 18 abnormalities of CT-RATE, in the order of its label files, and the prompts that ask for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ABNORMALITIES: tuple[str, ...] = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)


def prompt_pair(abnormality: str) -> tuple[str, str]:
    """The published pair of prompts, (present, not present), whose softmax is the zero-shot probability."""
    return f"{abnormality} is present.", f"{abnormality} is not present."


@dataclass(frozen=True)
class LabelSet:
    """The abnormalities that a data set is scored on, each being the larger of some of the 18."""

    names: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]  # of `ABNORMALITIES`, for each name

    def merge(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """(N, 18) labels or probabilities to (N, names); nan, unknown, only where all of a name's columns are."""
        return np.column_stack([np.fmax.reduce(values[:, columns], axis=1) for columns in self.columns])


CALCIFICATION = "Calcification"
OWN_LABELS = LabelSet(ABNORMALITIES, tuple((place,) for place in range(len(ABNORMALITIES))))


def label_set(dataset: str) -> LabelSet:
    """What a data set is scored on: the 18; of RAD-ChestCT 16, with one calcification, without mosaic attenuation."""
    if dataset != "rad-chestct":
        return OWN_LABELS
    calcifications = [place for place, name in enumerate(ABNORMALITIES) if name.endswith("wall calcification")]
    left_out = {*calcifications, ABNORMALITIES.index("Mosaic attenuation pattern")}
    kept = [place for place in range(len(ABNORMALITIES)) if place not in left_out]
    names = (*(ABNORMALITIES[place] for place in kept), CALCIFICATION)
    return LabelSet(names, (*((place,) for place in kept), tuple(calcifications)))
