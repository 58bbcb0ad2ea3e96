"""Trilinear resampling with half-pixel centres, cut or padded around the centre, as in the published code.

Linear interpolation is separable: two planes of the source are blended along depth, the result along width, then along
height. Voxels outside the recipe's window are not computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import Recipe
from ctclip_model.data.accelerators import load_kernels


@dataclass(frozen=True)
class Axis:
    """Resampling of one axis: window[start + i] = (1 - weight[i]) source[lower[i]] + weight[i] source[upper[i]]."""

    lower: np.ndarray  # indices into the source
    upper: np.ndarray
    weight: np.ndarray  # float32
    start: int  # index in the recipe's window; voxels before it and from `stop` on are padding

    @property
    def stop(self) -> int:
        return self.start + len(self.lower)

    def reversed(self, size: int) -> Axis:
        """The same resampling of a source of `size` planes that lie in reverse order."""
        return replace(self, lower=size - 1 - self.lower, upper=size - 1 - self.upper)


def plan_axes(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], recipe: Recipe) -> list[Axis]:
    """The resampling of the source's three axes, which become the result's height, width and depth.

    `spacing_mm` is the source's. Raises `ValueError` for an axis that makes less than one voxel.
    """
    order = (1, 2, 0)
    return [
        _plan_axis(size, spacing, recipe.spacing_mm[axis], recipe.shape[axis])
        for size, spacing, axis in zip(shape, spacing_mm, order, strict=True)
    ]


def locate_voxels(size: int, spacing: float, target: float, window: int) -> NDArray[np.float64]:
    """Fractional index in the recipe's window of each of the source's voxels along an axis, (size,).

    The inverse of `plan_axes`. Voxels below -0.5, or from `window` - 0.5 on, are cut off.
    """
    resampled = _resampled_size(size, spacing, target)
    count = min(resampled, window)
    return (np.arange(size) + 0.5) * resampled / size - 0.5 - (resampled - count) // 2 + (window - count) // 2


def _resampled_size(size: int, spacing: float, target: float) -> int:
    """Voxels after resampling. Divides first: 300 slices of 0.6 mm give 119 of 1.5 mm, as published."""
    return int(size * (spacing / target))


def _plan_axis(size: int, spacing: float, target: float, window: int) -> Axis:
    resampled = _resampled_size(size, spacing, target)
    if resampled < 1:
        raise ValueError(f"{size} voxels of {spacing:g} mm are less than one of {target:g} mm")
    count = min(resampled, window)
    indices = np.arange(count) + (resampled - count) // 2
    positions = np.maximum((indices + 0.5) * size / resampled - 0.5, 0)
    lower = positions.astype(np.intp)
    upper = np.minimum(lower + 1, size - 1)
    return Axis(lower, upper, (positions - lower).astype(np.float32), (window - count) // 2)


def blend_planes(
    below: np.ndarray, above: np.ndarray, weight: np.float32, height: Axis, width: Axis, out: np.ndarray
) -> None:
    """Fills the window of a plane of the result, `out` (height, width), from two neighbouring planes of the source.

    The planes of the source are (second axis, first axis). `weight` is the share of `above`. int16 results are rounded.
    """
    is_rounded = out.dtype.kind == "i"
    kernels = load_kernels()
    if kernels:
        parts = ((axis.lower, axis.upper, axis.weight, axis.start) for axis in (height, width))
        kernels.blend_planes(below, above, weight, *parts, is_rounded, out)
        return
    plane = below.astype(np.float32)
    plane = _blend(plane + weight * (above - plane), width)
    plane = _blend(np.ascontiguousarray(plane.T), height)
    out[height.start : height.stop, width.start : width.stop] = np.rint(plane) if is_rounded else plane


def _blend(rows: np.ndarray, axis: Axis) -> np.ndarray:
    low, high = rows[axis.lower], rows[axis.upper]
    high -= low
    high *= axis.weight[:, None]
    low += high
    return low
