"""From a CT volume's file to the model's input: the published inference preprocessing, in little memory.

HU are clipped, resampled trilinearly with half-pixel centres, and cut or padded around the centre. The file is read
once, plane by plane, and no more than two of its planes are held.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctclip_model.config import Recipe
from ctclip_model.data.hounsfield import HounsfieldPlanes, clip_plane
from ctclip_model.data.nifti import NiftiStream, fault
from ctclip_model.data.npz import ORIENTATION, NpzStream
from ctclip_model.data.resampling import blend_planes, plan_axes
from ctclip_model.data.slabs import encode_slab

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PUBLISHED = Recipe()
PLAUSIBLE_SPACING_MM = (0.1, 20.0)  # CT is 0.2 to 10; phantoms are coarser; CT-RATE has wrong ones of 0.035 and 0.075
SPACING_TOLERANCE = 0.05  # relative

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class ConvertedVolume:
    """A volume in HU, resampled and windowed.

    `spacing_mm` and `shape_in` are in the source's axis order; `window` says which voxels are not padding, as
    (start, stop) along depth, height, width. `hu_min` and `hu_max` are the source's before clipping, `hu_mean` and
    `hu_std` after it. `spacing_note` tells of a disagreement between the table and the header. HU are
    `rescale_slope` x what the file stores + `rescale_intercept`.
    """

    voxels: np.ndarray  # HU (depth, height, width), int16 as shards keep them, or float32
    shape_in: tuple[int, int, int]
    spacing_mm: Spacing
    window: tuple[tuple[int, int], ...]
    hu_mean: float
    hu_std: float
    hu_min: int
    hu_max: int
    spacing_note: str | None = None
    rescale_slope: float = 1.0
    rescale_intercept: float = 0.0

    def to_input(self) -> torch.Tensor:
        """The model's input, float32 (1, depth, height, width) in [-1, 1]; float voxels are scaled in place."""
        import torch  # conversion needs none, and its workers are many

        return torch.from_numpy(self.voxels).float().div_(1000).unsqueeze(0)


def load_volume(
    path: str | PathLike[str],
    *,
    spacing_mm: Sequence[float | None] | None = None,
    slope: float | None = 1.0,
    intercept: float | None = 0.0,
    recipe: Recipe = PUBLISHED,
) -> torch.Tensor:
    """Reads a NIfTI volume as the model's input, float32 (1, depth, height, width) in [-1, 1].

    The published inference preprocessing (arXiv:2403.17834): HU are clipped to the recipe's window, resampled to its
    spacing, cut or padded to its shape around the centre, and divided by 1,000.

    `spacing_mm` is the spacing along the first, second and third array axis. Default: the header's. HU are `slope` x
    value + `intercept`; CT-RATE's v2 files hold HU already. A spacing or rescaling of None counts as missing.

    Raises `VolumeError` for a file that is missing, damaged, or no CT volume.

    >>> from ctclip_model import load_volume
    >>> volume = load_volume("scan.nii.gz")
    >>> tuple(volume.shape), volume.dtype
    ((1, 240, 480, 480), torch.float32)
    """
    volume = read_volume(path, spacing_mm=spacing_mm, slope=slope, intercept=intercept, recipe=recipe)
    if volume.spacing_note:
        logger.warning("%s: %s", path, volume.spacing_note)
    return volume.to_input()


def read_volume(
    path: str | PathLike[str],
    *,
    spacing_mm: Sequence[float | None] | None = None,
    slope: float | None = 1.0,
    intercept: float | None = 0.0,
    recipe: Recipe = PUBLISHED,
) -> ConvertedVolume:
    """Reads a NIfTI volume as `load_volume` does, in float32 HU, with the facts of its source.

    Whether values are HU is left to who asks: only conversion refuses them (`hounsfield.find_wrong_rescaling`).
    """
    return _convert(Path(path), spacing_mm, slope, intercept, recipe, np.dtype(np.float32), is_checked=False)


def convert_volume(
    path: str | PathLike[str],
    *,
    spacing_mm: Sequence[float | None] | None = None,
    slope: float | None = 1.0,
    intercept: float | None = 0.0,
    recipe: Recipe = PUBLISHED,
    orientation: str = ORIENTATION,
) -> ConvertedVolume:
    """Reads a NIfTI volume as `load_volume` does, rounded to int16 HU as shards keep it, with the facts of its source.

    A `.npz` is read as RAD-ChestCT's, its axes by `orientation`, see `npz.py`. Raises `VolumeError`, whose `reason` is
    the reject's code.
    """
    return _convert(Path(path), spacing_mm, slope, intercept, recipe, np.dtype(np.int16), orientation)


def compile_kernels() -> None:
    """Compiles what conversion runs, if that was never done here, so that workers find it instead of doing it each."""
    plane = np.zeros((2, 2), np.int16)
    first, second, _ = plan_axes((2, 2, 2), (1.0, 1.0, 1.0), Recipe(spacing_mm=(1.0, 1.0, 1.0), shape=(2, 2, 2)))
    hu = np.empty((2, 2, 2), np.int16)
    clip_plane(plane, 1.0, 0.0, PUBLISHED.window_hu, hu[0])
    blend_planes(hu[0], hu[0], np.float32(0), first, second, plane)
    encode_slab(plane[None], "delta-zstd")


def choose_spacing(
    csv_spacing: Sequence[float | None] | None, header_zooms: Sequence[float]
) -> tuple[Spacing, str | None]:
    """The spacing to use along each array axis, in mm, and a note where the table and the header disagree.

    The table wins, since CT-RATE's headers are sometimes blank. The header stands in for what the table lacks, but only
    if it agrees with the rest of the table. Raises `ValueError` if neither is usable.
    """
    table = [_plausible(value) for value in csv_spacing or (None,) * 3]
    header = [_plausible(value) for value in header_zooms]
    pairs = [(ours, theirs) for ours, theirs in zip(table, header, strict=True) if ours is not None]
    agrees = all(theirs is not None and math.isclose(ours, theirs, rel_tol=SPACING_TOLERANCE) for ours, theirs in pairs)
    chosen = [ours or (theirs if agrees else None) for ours, theirs in zip(table, header, strict=True)]
    both = f"table {_format(csv_spacing)}, header {_format(header_zooms)} mm"
    first, second, third = chosen
    if first is None or second is None or third is None:
        raise ValueError(f"no usable spacing: {both}")
    note = None
    if csv_spacing is not None and (not agrees or len(pairs) < 3):
        note = f"spacing in doubt: {both}; used {_format(chosen)}"
    return (first, second, third), note


def _plausible(value: float | None) -> float | None:
    low, high = PLAUSIBLE_SPACING_MM
    return float(value) if value is not None and low <= value <= high else None


def _format(spacing: Sequence[float | None] | None) -> str:
    return " x ".join("?" if value is None else f"{value:.4g}" for value in spacing or (None,) * 3)


def _convert(
    path: Path,
    spacing_mm: Sequence[float | None] | None,
    slope: float | None,
    intercept: float | None,
    recipe: Recipe,
    dtype: np.dtype,
    orientation: str = ORIENTATION,
    is_checked: bool = True,
) -> ConvertedVolume:
    with NpzStream(path, orientation) if path.suffix == ".npz" else NiftiStream(path) as stream:
        shape = stream.header.shape
        try:
            spacing, note = choose_spacing(spacing_mm, stream.header.zooms_mm)
        except ValueError as error:
            raise fault(path, "bad_spacing", str(error)) from error
        try:
            height, width, depth = plan_axes(shape, spacing, recipe)
        except ValueError as error:
            raise fault(path, "too_few_slices", str(error)) from error
        source = HounsfieldPlanes(stream, slope, intercept, recipe.window_hu)
        window = tuple((axis.start, axis.stop) for axis in (depth, height, width))
        voxels = np.empty(recipe.shape, dtype)
        if window != tuple((0, side) for side in recipe.shape):
            voxels.fill(recipe.window_hu[0])
        ring = np.empty((2, shape[1], shape[0]), source.dtype)  # the two planes read last
        for index, (lower, upper, weight) in enumerate(zip(depth.lower, depth.upper, depth.weight, strict=True)):
            while source.position <= upper:
                source.read(ring[source.position % 2])
            blend_planes(ring[lower % 2], ring[upper % 2], weight, height, width, voxels[depth.start + index])
        while source.position < shape[2]:  # for the statistics and the checksum
            source.read(ring[0])
        stream.finish()
        if is_checked:
            source.check_rescaling()
        statistics = source.statistics()
        return ConvertedVolume(
            voxels, shape, spacing, window, *statistics, note, rescale_slope=source.slope,
            rescale_intercept=source.intercept,
        )  # fmt: skip
