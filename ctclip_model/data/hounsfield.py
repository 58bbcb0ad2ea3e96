"""A volume's planes in Hounsfield units, and a sample for the judge of these units."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ctclip_model.data.accelerators import load_kernels
from ctclip_model.data.nifti import fault
from ctclip_model.data.streams import PlaneStream
from ctclip_model.data.value_check import ValueFault, judge_values

PLAUSIBLE_HU = 1e6  # largest magnitude accepted; metal and padding stay below 40,000
SAMPLED_VOXELS = 2**16  # voxels of a volume that the check looks at


class HounsfieldPlanes:
    """Reads a stream's planes in HU, clipped to the window, and keeps statistics of all planes read."""

    def __init__(
        self, stream: PlaneStream, slope: float | None, intercept: float | None, window_hu: tuple[int, int]
    ) -> None:
        header = stream.header
        self.stream = stream
        if slope is None or intercept is None:
            raise fault(stream.path, "bad_rescale", "the table has no slope and intercept")
        self.slope, self.intercept = slope * header.slope, slope * header.intercept + intercept
        if not (0 < abs(self.slope) <= PLAUSIBLE_HU and abs(self.intercept) <= PLAUSIBLE_HU):  # NaN too
            raise fault(stream.path, "bad_rescale", f"HU = {self.slope:g} x stored value + {self.intercept:g}")
        self.window_hu = window_hu
        are_integers = np.can_cast(header.dtype, np.int16) and self.slope % 1 == self.intercept % 1 == 0
        fits = window_hu[0] >= -(2**15) and window_hu[1] < 2**15
        self.dtype = np.dtype(np.int16 if are_integers and fits else np.float32)  # planes in int16 HU are read faster
        self.position = 0  # index of the next plane
        self.count = header.shape[2]  # planes
        self.shape = (header.shape[1], header.shape[0])  # a plane: second axis, first axis
        self._stored = np.empty(self.shape, header.dtype)
        self._stride = max(1, math.prod(header.shape) // SAMPLED_VOXELS) | 1  # odd: samples lie in different columns
        self._samples: list[np.ndarray] = []  # stored values
        self._least, self._most = math.inf, -math.inf  # stored values
        self.count_blank = self.count_repeated = 0  # planes of one value, and planes that equal the one before
        self._plane: tuple[float, ...] = ()  # statistics of the plane read last
        self._sum = self._sum_of_squares = 0.0  # clipped HU

    def read(self, out: np.ndarray) -> None:
        """Fills `out`, a plane of `shape` and `dtype`, with the next plane. Raises `VolumeError` for NaN voxels."""
        self.stream.read_plane(self._stored)
        self.position += 1
        least, most, total, squares = clip_plane(self._stored, self.slope, self.intercept, self.window_hu, out)
        if not (math.isfinite(least) and math.isfinite(most)):
            raise fault(self.stream.path, "nan_voxels", f"plane {self.position} holds NaN or infinite voxels")
        statistics = (least, most, total, squares)
        self.count_blank += bool(least == most)
        self.count_repeated += bool(least != most and statistics == self._plane)
        self._plane = statistics
        self._least, self._most = min(self._least, float(least)), max(self._most, float(most))
        self._sum += total
        self._sum_of_squares += squares
        self._samples.append(self._stored.reshape(-1)[:: self._stride].copy())

    def judge(self) -> ValueFault | None:
        """The fault of values that are not HU, by a sample of all planes read."""
        return judge_values(np.concatenate(self._samples) * self.slope + self.intercept)

    def statistics(self) -> tuple[float, float, int, int]:
        """Mean, standard deviation, least and most, in HU. Raises `VolumeError` for values that no CT has."""
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


def clip_plane(
    stored: np.ndarray, slope: float, intercept: float, window_hu: tuple[int, int], out: np.ndarray
) -> tuple[float, float, float, float]:
    """Fills `out` with a plane's HU, slope x stored + intercept, clipped to the window.

    Returns the least and the most stored value (NaN or infinite if a voxel is) and the sums of `out` and its squares.
    """
    kernels = load_kernels()
    with np.errstate(over="ignore", invalid="ignore"):  # overflows are clipped, NaN is refused
        if kernels and np.can_cast(stored.dtype, np.int16):
            numbers = [np.float32(number) for number in (slope, intercept, *window_hu)]
            return kernels.clip_plane(stored.astype(np.int16, copy=False), *numbers, out)
        hu: NDArray[np.floating] = stored.astype(np.float32 if stored.dtype.itemsize <= 2 else np.float64)
        hu = hu * slope + intercept
        out[:] = hu = np.clip(hu, *window_hu)
        return stored.min(), stored.max(), float(hu.sum()), float(np.einsum("ji,ji->", hu, hu))
