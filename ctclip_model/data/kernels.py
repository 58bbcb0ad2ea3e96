"""The inner loops of conversion and reading, compiled by numba. Only `load_kernels` imports this module.

Each machine compiles them once: numba caches the code beside this file or, if that is read-only, in the user's cache
folder. Loops run along contiguous memory, so that they are vectorised, and over blocks that fit a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

BLOCK = 240  # columns of the result at a time; their rows fit a core's cache


def _compiled(**options: Any) -> Callable[[Callable], Any]:
    def compile_(function: Callable) -> Any:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # no writable folder for the cache: every process compiles
            return njit(nogil=True, **options)(function)

    return compile_


@_compiled(fastmath={"reassoc"})  # allows sums in any order
def clip_plane(stored, slope, intercept, low, high, out):  # type: ignore[no-untyped-def]
    """See `hounsfield.clip_plane`."""
    least = most = stored[0, 0]
    total = squares = np.float64(0)
    for row in range(len(stored)):
        row_total = row_squares = np.float32(0)
        for column in range(stored.shape[1]):
            value = stored[row, column]
            least, most = min(least, value), max(most, value)
            hu = min(max(slope * np.float32(value) + intercept, low), high)
            out[row, column] = hu
            row_total += hu
            row_squares += hu * hu
        total += row_total
        squares += row_squares
    return least, most, total, squares


@_compiled()
def _blend(lower, upper, weight, out):  # type: ignore[no-untyped-def]
    for index in range(len(out)):
        low, high = np.float32(lower[index]), np.float32(upper[index])
        out[index] = low + weight * (high - low)


@_compiled()
def _blend_and_round(lower, upper, weight, out):  # type: ignore[no-untyped-def]
    for index in range(len(out)):
        out[index] = np.rint(lower[index] + weight * (upper[index] - lower[index]))


@_compiled()
def blend_planes(below, above, weight, height, width, is_rounded, out):  # type: ignore[no-untyped-def]
    """See `resampling.blend_planes`. An axis is (lower, upper, weight, start)."""
    lower, upper, weights, start = width
    h_lower, h_upper, h_weights, h_start = height
    first, last = h_lower[0], h_upper[-1] + 1
    blocks = [(begin, min(begin + BLOCK, len(lower))) for begin in range(0, len(lower), BLOCK)]
    deepest = max([upper[end - 1] + 1 - lower[begin] for begin, end in blocks])
    rows = np.empty((deepest, last - first), np.float32)
    turned = np.empty((last - first, BLOCK), np.float32)  # rows as columns
    for begin, end in blocks:
        base = lower[begin]
        for row in range(base, upper[end - 1] + 1):  # along depth
            _blend(below[row, first:last], above[row, first:last], weight, rows[row - base])
        for column in range(begin, end):  # along width
            low, high, share = rows[lower[column] - base], rows[upper[column] - base], weights[column]
            for row in range(len(low)):
                turned[row, column - begin] = low[row] + share * (high[row] - low[row])
        for row in range(len(h_lower)):  # along height
            target = out[h_start + row, start + begin : start + end]
            low, high = turned[h_lower[row] - first], turned[h_upper[row] - first]
            if is_rounded:
                _blend_and_round(low, high, h_weights[row], target)
            else:
                _blend(low, high, h_weights[row], target)


@_compiled()
def split_rows(planes, low, high):  # type: ignore[no-untyped-def]
    """Fills `low` and `high` with the bytes of each row's difference d from the row above, int16 (planes, rows, n).

    Each d is written as 2d, or -2d - 1 if negative, so that the high bytes of small differences are zero.
    """
    for plane in range(len(planes)):
        _split(planes[plane, 0], np.zeros_like(planes[plane, 0]), low[plane, 0], high[plane, 0])
        for row in range(1, planes.shape[1]):
            _split(planes[plane, row], planes[plane, row - 1], low[plane, row], high[plane, row])


@_compiled()
def _split(row, above, low, high):  # type: ignore[no-untyped-def]
    for index in range(len(row)):
        delta = np.int16(row[index] - above[index])
        word = np.uint16((delta << np.int16(1)) ^ (delta >> np.int16(15)))
        low[index], high[index] = np.uint8(word), np.uint8(word >> np.uint16(8))


@_compiled()
def join_rows(low, high, out):  # type: ignore[no-untyped-def]
    """Undoes `split_rows`."""
    for plane in range(len(out)):
        _join(low[plane, 0], high[plane, 0], np.zeros_like(out[plane, 0]), out[plane, 0])
        for row in range(1, out.shape[1]):
            _join(low[plane, row], high[plane, row], out[plane, row - 1], out[plane, row])


@_compiled()
def _join(low, high, above, row):  # type: ignore[no-untyped-def]
    for index in range(len(row)):
        word = np.uint16(low[index]) | (np.uint16(high[index]) << np.uint16(8))
        row[index] = above[index] + np.int16((word >> np.uint16(1)) ^ -(word & np.uint16(1)))
