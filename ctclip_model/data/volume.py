"""CT volumes from a file to the model's input: the published inference preprocessing, in little memory.

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
from ctclip_model.data.resampling import Axis, blend_planes, plan_axes
from ctclip_model.data.slabs import encode_slab

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PUBLISHED = Recipe()
PLAUSIBLE_SPACING_MM = (0.1, 20.0)  # CT has 0.2 to 10, phantoms have more, faulty rows of CT-RATE 0.035 and 0.075
SPACING_TOLERANCE = 0.05  # relative difference between table and header

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class ConvertedVolume:
    """A volume in HU, resampled and windowed.

    `spacing_mm` and `shape_in` are in the source's axis order. Voxels outside `window`, (start, stop) along depth,
    height, width, are padding. `hu_min` and `hu_max` are the source's before clipping, `hu_mean` and `hu_std` after it.
    `spacing_note` describes a disagreement between table and header. HU = `rescale_slope` x stored value +
    `rescale_intercept`.
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
        """The model's input, float32 (1, depth, height, width) in [-1, 1]. Scales float voxels in place."""
        import torch  # workers of the conversion start faster without it

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
    value + `intercept`. CT-RATE's v2 files hold HU already. A spacing or rescaling of None counts as missing.

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

    Does not check that the values are HU, as `convert_volume` does (`hounsfield.find_wrong_rescaling`).
    """
    with NiftiStream(Path(path)) as stream:
        return _convert(stream, spacing_mm, slope, intercept, recipe, np.float32, is_checked=False)


def convert_volume(
    path: str | PathLike[str],
    *,
    spacing_mm: Sequence[float | None] | None = None,
    slope: float | None = 1.0,
    intercept: float | None = 0.0,
    recipe: Recipe = PUBLISHED,
    orientation: str = ORIENTATION,
) -> ConvertedVolume:
    """Reads a volume as `load_volume` does, rounded to the int16 HU of shards, with the facts of its source.

    A `.npz` is a volume of RAD-ChestCT, with axes in `orientation` (see `npz.py`). Raises `VolumeError`, whose `reason`
    is the reject's code, also for values that are not HU.
    """
    path = Path(path)
    with NpzStream(path, orientation) if path.suffix == ".npz" else NiftiStream(path) as stream:
        return _convert(stream, spacing_mm, slope, intercept, recipe, np.int16, is_checked=True)


def compile_kernels() -> None:
    """Compiles the loops of the conversion once on this machine, so that workers load them instead."""
    plane = np.zeros((2, 2), np.int16)
    first, second, _ = plan_axes((2, 2, 2), (1.0, 1.0, 1.0), Recipe(spacing_mm=(1.0, 1.0, 1.0), shape=(2, 2, 2)))
    hu = np.empty((2, 2, 2), np.int16)
    clip_plane(plane, 1.0, 0.0, PUBLISHED.window_hu, hu[0])
    blend_planes(hu[0], hu[0], np.float32(0), first, second, plane)
    encode_slab(plane[None], "delta-zstd")


def choose_spacing(
    csv_spacing: Sequence[float | None] | None, header_zooms: Sequence[float]
) -> tuple[Spacing, str | None]:
    """The spacing to use along each array axis, in mm, and a note if table and header disagree.

    The table wins, since CT-RATE's headers are sometimes blank. The header fills gaps of the table if it agrees with
    the rest of it. Raises `ValueError` if neither is usable.
    """
    table = [_plausible(value) for value in csv_spacing or (None,) * 3]
    header = [_plausible(value) for value in header_zooms]
    pairs = [(listed, stored) for listed, stored in zip(table, header, strict=True) if listed is not None]
    agrees = all(
        stored is not None and math.isclose(listed, stored, rel_tol=SPACING_TOLERANCE) for listed, stored in pairs
    )
    chosen = [listed or (stored if agrees else None) for listed, stored in zip(table, header, strict=True)]
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
    stream: NiftiStream | NpzStream,
    spacing_mm: Sequence[float | None] | None,
    slope: float | None,
    intercept: float | None,
    recipe: Recipe,
    dtype: type[np.float32] | type[np.int16],
    *,
    is_checked: bool,
) -> ConvertedVolume:
    """Reads a stream to its end: spacing, axes and rescaling first, then voxels, then the checks of the values."""
    shape = stream.header.shape
    try:
        spacing, note = choose_spacing(spacing_mm, stream.header.zooms_mm)
    except ValueError as error:
        raise fault(stream.path, "bad_spacing", str(error)) from error
    try:
        height, width, depth = plan_axes(shape, spacing, recipe)
    except ValueError as error:
        raise fault(stream.path, "too_few_slices", str(error)) from error
    planes = HounsfieldPlanes(stream, slope, intercept, recipe.window_hu)
    voxels = _resample(planes, depth, height, width, np.empty(recipe.shape, dtype))
    stream.finish()
    if is_checked:
        planes.check_rescaling()
    window = tuple((axis.start, axis.stop) for axis in (depth, height, width))
    return ConvertedVolume(
        voxels, shape, spacing, window, *planes.statistics(), note, rescale_slope=planes.slope,
        rescale_intercept=planes.intercept,
    )  # fmt: skip


def _resample(planes: HounsfieldPlanes, depth: Axis, height: Axis, width: Axis, out: np.ndarray) -> np.ndarray:
    """Fills `out` (depth, height, width) from all planes of the source.

    Plane z of the window is planes[lower[z]] + weight[z] (planes[upper[z]] - planes[lower[z]]). `upper` is `lower` or
    the plane after it, and neither falls with z: the two planes read last are enough. Plane i is kept in pair[i % 2].
    """
    if any((axis.start, axis.stop) != (0, size) for axis, size in zip((depth, height, width), out.shape, strict=True)):
        out.fill(planes.window_hu[0])
    pair = np.empty((2, *planes.shape), planes.dtype)
    for index, (lower, upper, weight) in enumerate(zip(depth.lower, depth.upper, depth.weight, strict=True)):
        while planes.position <= upper:
            planes.read(pair[planes.position % 2])
        blend_planes(pair[lower % 2], pair[upper % 2], weight, height, width, out[depth.start + index])
    while planes.position < planes.count:  # the rest, for the statistics and the checksum
        planes.read(pair[0])
    return out
