"""The golden volumes of the published preprocessing: some in the repository, the larger ones beside it."""

from __future__ import annotations

import ast
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.paths import GOLDEN, SHARED

GOLDEN_VOLUMES = GOLDEN / "preprocess"
BESIDE = SHARED / "golden" / "preprocess"


def golden(name: str) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
    """A volume's path, the options of its conversion, and what the published code makes of it."""
    folder = next((folder for folder in (GOLDEN_VOLUMES, BESIDE) if (folder / f"{name}.nii.gz").is_file()), None)
    if folder is None:
        pytest.skip(f"golden volume {name} is neither in {GOLDEN_VOLUMES} nor in {BESIDE}")
    with (folder / "metadata.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["VolumeName"] == f"{name}.nii.gz")
    options = {
        "spacing_mm": (*ast.literal_eval(row["XYSpacing"]), float(row["ZSpacing"])),
        "slope": float(row["RescaleSlope"]),
        "intercept": float(row["RescaleIntercept"]),
    }
    return folder / f"{name}.nii.gz", options, dict(np.load(folder / f"{name}.expected.npz"))
