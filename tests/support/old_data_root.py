"""A data root of an earlier version, and the data set that it was made of.

`old_data_root.tar.xz` was made at commit f854578, the last one before the rooms of `tasks/`, by
`ctclip rebuild --source /data/phantoms --data-root /data/ctclip --preset smoke --labeller tfidf`.
"""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.data.phantom.dataset import GZIP
from support.paths import GOLDEN

PHANTOMS = PhantomConfig(seed=165, train_patients=3, valid_patients=2)
RAISED = {"label", "evaluate", "report"}  # stages whose VERSION was raised since


def extract_old_data_root(folder: Path) -> Path:
    with tarfile.open(GOLDEN / "old_data_root.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def make_old_phantoms(folder: Path) -> Path:
    """The volumes that the data root was made of, at another place."""
    make_phantoms(folder, PHANTOMS, processes=1)
    for path in folder.rglob("*.nii.gz"):
        write_as_before(path)
    return folder


def write_as_before(path: Path) -> None:
    """Writes a phantom as that version did: its header said RAS over LPS voxels."""
    image = nib.load(path)
    spacing_mm = image.header.get_zooms()
    older = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([*map(float, spacing_mm), 1.0]))
    older.header.set_slope_inter(1, 0)
    older.header.set_xyzt_units("mm")
    path.write_bytes(zlib.compress(older.to_bytes(), level=1, wbits=GZIP))
