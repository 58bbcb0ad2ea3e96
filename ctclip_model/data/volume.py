"""From a CT volume's file to the model's input: the published inference preprocessing, in little memory.

HU are clipped, resampled trilinearly with half-pixel centres, and cut or padded around the centre. Linear
interpolation is separable, so planes are read once and blended along depth, width and height in turn, and only where
the recipe's window looks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import Recipe
from ctclip_model.data.nifti import NiftiStream, fault

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PUBLISHED = Recipe()
PLAUSIBLE_SPACING_MM = (0.1, 20.0)  # CT is 0.2 to 10; phantoms are coarser; CT-RATE has wrong ones of 0.035 and 0.075
SPACING_TOLERANCE = 0.05  # relative
PLAUSIBLE_HU = 1e6  # metal and padding stay below 40,000
SLAB_VOXELS = 2**18  # of a plane of the source, in float32: small enough for a core's own cache

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class ConvertedVolume:
    """A volume in HU, resampled and windowed.

    `spacing_mm` and `shape_in` are in the source's axis order; `window` says which voxels are not padding, as
    (start, stop) along depth, height, width. `hu_min` and `hu_max` are the source's before clipping, `hu_mean` and
    `hu_std` after it. `spacing_note` tells of a disagreement between the table and the header.
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
    """Reads a NIfTI volume as the model's input, a float32 tensor (1, depth, height, width) in [-1, 1].

    `spacing_mm` is that of the first, second and third array axis, the header's when None. HU = slope x value +
    intercept; CT-RATE's v2 files hold HU already. Raises `VolumeError` for whatever is wrong with the file.
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
    """Reads a NIfTI volume as `load_volume` does, in float32 HU, with the facts of its source."""
    return _convert(Path(path), spacing_mm, slope, intercept, recipe, np.dtype(np.float32))


def convert_volume(
    path: str | PathLike[str],
    *,
    spacing_mm: Sequence[float | None] | None = None,
    slope: float | None = 1.0,
    intercept: float | None = 0.0,
    recipe: Recipe = PUBLISHED,
) -> ConvertedVolume:
    """Reads a NIfTI volume as `load_volume` does, rounded to int16 HU as shards keep it, with the facts of its source.

    Raises `VolumeError`, whose `reason` is the reject's code.
    """
    return _convert(Path(path), spacing_mm, slope, intercept, recipe, np.dtype(np.int16))


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


@dataclass(frozen=True)
class _Axis:
    """How one axis is resampled: voxel i of the window's inside = lower[i] + weight[i] (upper[i] - lower[i])."""

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray  # float32
    inside: slice  # of the recipe's window; the rest is padding

    @property
    def source(self) -> slice:
        """The source's voxels that are needed at all."""
        return slice(int(self.lower[0]), int(self.upper[-1]) + 1)


def _plan_axis(size: int, spacing: float, target: float, window: int) -> _Axis:
    resampled = int(size * (spacing / target))  # the division first: 300 slices of 0.6 mm give 119 of 1.5 mm
    if resampled < 1:
        raise ValueError(f"{size} voxels of {spacing:g} mm are less than one of {target:g} mm")
    count = min(resampled, window)
    indices = np.arange(count) + (resampled - count) // 2
    positions = np.maximum((indices + 0.5) * size / resampled - 0.5, 0)
    lower = positions.astype(np.intp)
    upper = np.minimum(lower + 1, size - 1)
    start = (window - count) // 2
    return _Axis(lower, upper, (positions - lower).astype(np.float32), slice(start, start + count))


def _blend(array: np.ndarray, axis: int, lower: np.ndarray, upper: np.ndarray, weight: np.ndarray) -> np.ndarray:
    low, high = array.take(lower, axis), array.take(upper, axis)
    high -= low
    high *= weight.reshape([-1 if index == axis else 1 for index in range(array.ndim)])
    low += high
    return low


def _convert(
    path: Path,
    spacing_mm: Sequence[float | None] | None,
    slope: float | None,
    intercept: float | None,
    recipe: Recipe,
    dtype: np.dtype,
) -> ConvertedVolume:
    with NiftiStream(path) as stream:
        shape = stream.header.shape
        try:
            spacing, note = choose_spacing(spacing_mm, stream.header.zooms_mm)
        except ValueError as error:
            raise fault(path, "bad_spacing", str(error)) from error
        first_to_third = [recipe.spacing_mm[axis] for axis in (1, 2, 0)], [recipe.shape[axis] for axis in (1, 2, 0)]
        try:
            height, width, depth = map(_plan_axis, shape, spacing, *first_to_third)
        except ValueError as error:
            raise fault(path, "too_few_slices", str(error)) from error
        source = _HounsfieldPlanes(stream, slope, intercept, recipe.window_hu)
        voxels = np.full(recipe.shape, recipe.window_hu[0], dtype)
        inside = voxels[depth.inside, height.inside, width.inside]
        for planes, resampled in _resample(source, depth, height, width):
            inside[planes] = resampled if dtype.kind == "f" else np.rint(resampled, out=resampled)
        source.skip_to(shape[2])
        stream.finish()
        window = tuple((axis.inside.start, axis.inside.stop) for axis in (depth, height, width))
        return ConvertedVolume(voxels, shape, spacing, window, *source.statistics(), spacing_note=note)


def _resample(
    source: _HounsfieldPlanes, depth: _Axis, height: _Axis, width: _Axis
) -> Iterator[tuple[slice, np.ndarray]]:
    """Slabs of resampled planes, float32 (planes, height, width), with their place along depth."""
    second, first = width.source, height.source
    step = max(1, SLAB_VOXELS // ((second.stop - second.start) * (first.stop - first.start)))
    held, held_from = np.empty((0, second.stop - second.start, first.stop - first.start), np.float32), 0
    for start in range(0, len(depth.lower), step):
        planes = slice(start, min(start + step, len(depth.lower)))
        lower, upper, weight = depth.lower[planes], depth.upper[planes], depth.weight[planes]
        source.skip_to(int(lower[0]))
        fresh = source.read(int(upper[-1]) + 1 - source.position)
        held = np.concatenate([held[lower[0] - held_from :], fresh[:, second, first]])
        held_from = int(lower[0])
        slab = _blend(held, 0, lower - held_from, upper - held_from, weight)
        slab = _blend(slab, 1, width.lower - second.start, width.upper - second.start, width.weight)
        slab = np.ascontiguousarray(slab.swapaxes(1, 2))  # (planes, first axis, width)
        yield planes, _blend(slab, 1, height.lower - first.start, height.upper - first.start, height.weight)


class _HounsfieldPlanes:
    """A stream's planes in HU, clipped to the window; keeps the statistics of all that passed."""

    def __init__(
        self, stream: NiftiStream, slope: float | None, intercept: float | None, window_hu: tuple[int, int]
    ) -> None:
        header = stream.header
        self.stream = stream
        if slope is None or intercept is None:
            raise fault(stream.path, "bad_rescale", "the table has no slope and intercept")
        self.slope, self.intercept = slope * header.slope, slope * header.intercept + intercept
        if not (self.slope and math.isfinite(self.slope) and math.isfinite(self.intercept)):
            raise fault(stream.path, "bad_rescale", f"HU = {self.slope:g} x stored + {self.intercept:g}")
        self.window_hu = window_hu
        self.position = 0
        self._least, self._most = math.inf, -math.inf  # as stored
        self._sum = self._sum_of_squares = 0.0  # of clipped HU

    def read(self, count: int) -> np.ndarray:
        """The next planes, float32 (planes, second axis, first axis)."""
        stored = self.stream.read_planes(count)
        self.position += count
        if not count:
            return stored.astype(np.float32)
        least, most = float(stored.min()), float(stored.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            raise fault(self.stream.path, "nan_voxels", f"planes before {self.position} hold NaN or infinite voxels")
        self._least, self._most = min(self._least, least), max(self._most, most)
        hu: NDArray[np.floating] = stored.astype(np.float32 if stored.dtype.itemsize <= 2 else np.float64)
        with np.errstate(over="ignore"):  # what overflows is clipped
            if self.slope != 1:
                hu *= self.slope
            if self.intercept:
                hu += self.intercept
        clipped = np.clip(hu, *self.window_hu, out=hu).astype(np.float32, copy=False)
        self._sum += float(clipped.sum())
        self._sum_of_squares += float(np.einsum("kji,kji->", clipped, clipped))
        return clipped

    def skip_to(self, position: int) -> None:
        """Reads on, for the statistics alone."""
        planes = max(1, SLAB_VOXELS // math.prod(self.stream.header.shape[:2]))
        while self.position < position:
            self.read(min(planes, position - self.position))

    def statistics(self) -> tuple[float, float, int, int]:
        """Mean, standard deviation, least and most, in HU; raises `VolumeError` where they cannot be a CT's."""
        if self._least == self._most:
            reason = "constant" if self._most else "all_zero"
            raise fault(self.stream.path, reason, f"every voxel is {self._most:g}")
        ends = sorted(self.slope * value + self.intercept for value in (self._least, self._most))
        if max(map(abs, ends)) > PLAUSIBLE_HU:
            raise fault(self.stream.path, "bad_rescale", f"voxels from {ends[0]:g} to {ends[1]:g} HU")
        count = math.prod(self.stream.header.shape)
        mean = self._sum / count
        deviation = math.sqrt(max(self._sum_of_squares / count - mean**2, 0))
        return mean, deviation, round(ends[0]), round(ends[1])
