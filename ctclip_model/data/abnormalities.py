"""The 18 abnormalities of CT-RATE, in the order of its label files, and their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    """The published prompts (present, not present). A softmax over both gives the zero-shot probability."""
    return f"{abnormality} is present.", f"{abnormality} is not present."


@dataclass(frozen=True)
class ScoredNames:
    """The names that a data set is scored by. Each is the maximum over some of the 18 abnormalities."""

    names: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]  # for each name, indices in `ABNORMALITIES`

    def merge(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Merges labels or probabilities (N, 18) to (N, names).

        NaN means unknown. The result is NaN only if all columns of a name are.
        """
        import numpy as np

        return np.column_stack([np.fmax.reduce(values[:, columns], axis=1) for columns in self.columns])


CALCIFICATION = "Calcification"
OWN_NAMES = ScoredNames(ABNORMALITIES, tuple((index,) for index in range(len(ABNORMALITIES))))


def scored_names(dataset: str) -> ScoredNames:
    """The names that a data set is scored by: the 18 of CT-RATE, or the 16 that RAD-ChestCT shares with it.

    RAD-ChestCT has one label for both calcifications, and none for mosaic attenuation.
    """
    if dataset != "rad-chestct":
        return OWN_NAMES
    calcifications = [index for index, name in enumerate(ABNORMALITIES) if name.endswith("wall calcification")]
    left_out = {*calcifications, ABNORMALITIES.index("Mosaic attenuation pattern")}
    kept = [index for index in range(len(ABNORMALITIES)) if index not in left_out]
    names = (*(ABNORMALITIES[index] for index in kept), CALCIFICATION)
    return ScoredNames(names, (*((index,) for index in kept), tuple(calcifications)))
