"""CT volumes: random arrays, NIfTI files, volumes ready for a shard, and the golden volumes."""

from __future__ import annotations

import ast
import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ctclip_model.config import Recipe
from ctclip_model.data.shards import ShardVolume
from ctclip_model.data.volume import ConvertedVolume, convert_volume
from ctclip_model.errors import VolumeError
from support.paths import GOLDEN, SHARED

RECIPE = Recipe("small", spacing_mm=(3.0, 2.0, 2.0), shape=(10, 16, 12))
COARSE = Recipe("coarse", spacing_mm=(24.0, 24.0, 24.0), shape=(12, 14, 14))  # a phantom is smaller than this


def make_noise(shape: tuple[int, ...], dtype: str = "<i2", low: int = -1500, high: int = 1500) -> np.ndarray:
    """Random HU, the same at every call."""
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def save_nifti(
    path: Path,
    voxels: np.ndarray,
    spacing_mm: tuple[float, ...] = (2.0, 2.0, 3.0),
    kind: type = nib.Nifti1Image,
    affine: np.ndarray | None = None,
) -> Path:
    """Writes a NIfTI file of the array's own type and byte order, without a scaling of its own."""
    header = kind.header_class(endianness=">" if voxels.dtype.byteorder == ">" else "<")
    header.set_data_dtype(voxels.dtype)
    if affine is None:  # LPS, as CT-RATE's volumes are
        affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    image = kind(voxels, affine, header)
    image.header.set_slope_inter(1, 0)
    nib.save(image, path)
    return path


def make_shard_volume(
    name: str, recipe: Recipe = RECIPE, *, seed: int = 0, voxels: np.ndarray | None = None, **facts: Any
) -> ShardVolume:
    """A converted volume of random HU, or of the voxels given, int16 (depth, height, width)."""
    if voxels is None:
        voxels = np.random.default_rng(seed).integers(-1000, 1000, recipe.shape, np.int16)
    window = tuple((0, size) for size in recipe.shape)
    known: dict[str, Any] = {
        "shape_in": (50, 60, 70), "spacing_mm": (0.7, 0.7, 1.5), "window": window, "hu_mean": -500.5, "hu_std": 300.25,
        "hu_min": -1024, "hu_max": 3000,
    }  # fmt: skip
    return ShardVolume(name, "ab" * 32, ConvertedVolume(voxels, **known | facts))


def convert_plainly(hu: np.ndarray, spacing_mm: tuple[float, ...], recipe: Recipe) -> np.ndarray:
    """The published preprocessing of a whole volume at once, float64 (depth, height, width) in [-1, 1]."""
    volume = torch.from_numpy(np.clip(hu, *recipe.window_hu)).double().permute(2, 0, 1)[None, None]
    along = [spacing_mm[2], spacing_mm[0], spacing_mm[1]]
    size = [
        int(n * (ours / target)) for n, ours, target in zip(volume.shape[2:], along, recipe.spacing_mm, strict=True)
    ]
    volume = F.interpolate(volume, size=size, mode="trilinear", align_corners=False)[0, 0] / 1000
    for axis, (n, wanted) in enumerate(zip(size, recipe.shape, strict=True)):
        start = max((n - wanted) // 2, 0)
        volume = volume.narrow(axis, start, min(n, wanted))
        before = max((wanted - n) // 2, 0)
        padding = [0] * 6
        padding[4 - 2 * axis : 6 - 2 * axis] = before, wanted - volume.shape[axis] - before
        volume = F.pad(volume, padding, value=-1.0)
    return volume.numpy()


def reason_of_refusal(path: Path, **options: Any) -> str:
    """The reason for which a conversion refuses a file; a file that it takes is a failure."""
    with pytest.raises(VolumeError) as caught:
        convert_volume(path, recipe=RECIPE, **options)
    assert caught.value.item == path.name.split(".")[0]
    return caught.value.reason


def load_golden_volume(name: str) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
    """Path of a golden volume, options of its conversion, and the published code's output.

    Some golden volumes are in the repository, the larger ones beside it: tests skip where they are absent.
    """
    folders = (GOLDEN / "preprocess", SHARED / "golden" / "preprocess")
    folder = next((folder for folder in folders if (folder / f"{name}.nii.gz").is_file()), None)
    if folder is None:
        pytest.skip(f"golden volume {name} is in none of {', '.join(map(str, folders))}")
    with (folder / "metadata.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["VolumeName"] == f"{name}.nii.gz")
    options = {
        "spacing_mm": (*ast.literal_eval(row["XYSpacing"]), float(row["ZSpacing"])),
        "slope": float(row["RescaleSlope"]),
        "intercept": float(row["RescaleIntercept"]),
    }
    return folder / f"{name}.nii.gz", options, dict(np.load(folder / f"{name}.expected.npz"))
