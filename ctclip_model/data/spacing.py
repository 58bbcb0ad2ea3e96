"""Spacing of a volume's array axes, decided once from all that states it: table, pixdim, affine and units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PLAUSIBLE_SPACING_MM = (0.1, 20.0)  # CT is 0.2 to 10; phantoms are coarser; CT-RATE has wrong ones of 0.035 and 0.075
SPACING_TOLERANCE = 0.05  # relative
MM_PER_UNIT = {"mm": 1.0, "m": 1000.0, "µm": 0.001}  # units that a NIfTI header can name
BLANK_PIXDIM = (1.0, 1.0, 1.0)  # written by tools that know no spacing

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class HeaderSpacing:
    """Statements of a header: `pixdim` and the columns' lengths of its `affine`, in its own unit."""

    pixdim: Spacing
    affine: NDArray[np.float64] | None = None  # (4, 4)
    unit: str = "mm"


@dataclass(frozen=True)
class DecidedSpacing:
    """Spacing in mm by array axis, where each came from (`table`, `pixdim` or `affine`), and a note of a conflict."""

    mm: Spacing
    sources: tuple[str, str, str]
    note: str | None = None


def decide_spacing(table: Sequence[float | None] | None, header: HeaderSpacing) -> DecidedSpacing:
    """Spacing to use along each array axis.

    The table wins, since CT-RATE's headers are sometimes blank. The header stands in for what the table lacks, if it
    agrees with the rest of the table. In a header, pixdim wins over the affine unless it is implausible or blank.
    Raises `ValueError` where nothing is usable.
    """
    by_header = _read_header(header)
    rows = [_plausible(value) for value in table or (None,) * 3]
    pairs = [(ours, theirs) for ours, (theirs, _) in zip(rows, by_header, strict=True) if ours is not None]
    agrees = all(theirs is not None and _is_close(ours, theirs) for ours, theirs in pairs)
    chosen: list[float] = []
    sources: list[str] = []
    for ours, (theirs, source) in zip(rows, by_header, strict=True):
        value = ours if ours is not None else theirs if agrees else None
        if value is None:
            raise ValueError(f"no usable spacing: {_describe(table, header)}")
        chosen.append(value)
        sources.append("table" if ours is not None else source)
    mm = (chosen[0], chosen[1], chosen[2])
    note = None
    if table is not None and (not agrees or len(pairs) < 3):
        note = f"spacing in doubt: {_describe(table, header)}; used {by(mm)} mm"
    elif table is None:
        note = _doubt_header(header, mm, sources)
    return DecidedSpacing(mm, (sources[0], sources[1], sources[2]), note)


def by(spacing: Sequence[float | None]) -> str:
    """Lengths for a person, such as `0.7 x 0.7 x 1.5`."""
    return " x ".join("?" if value is None or not math.isfinite(value) else f"{value:.4g}" for value in spacing)


def shortest_decimal(value: float) -> float:
    """The decimal number that a float32 of a header was: 0.7 and not 0.699999988."""
    return float(str(np.float32(value))) if float(np.float32(value)) == value else value


def affine_lengths(affine: NDArray[np.float64]) -> list[float]:
    """Lengths of an affine's columns, with the fewest digits that float32 allows."""
    lengths = []
    for column in np.asarray(affine, float)[:3, :3].T:
        length = float(np.linalg.norm(column))
        digits = (float(f"{length:.{count}g}") for count in range(3, 8))
        lengths.append(next((short for short in digits if abs(short - length) <= 3e-7 * length), length))
    return lengths


def _read_header(header: HeaderSpacing) -> list[tuple[float | None, str]]:
    """Plausible spacing of each axis in mm, and `pixdim` or `affine`."""
    factor = MM_PER_UNIT[header.unit]
    pixdim = [_plausible(_rounded(abs(shortest_decimal(value)) * factor)) for value in header.pixdim]
    affine: list[float | None] = [None] * 3
    if header.affine is not None and np.isfinite(header.affine).all():
        affine = [_plausible(_rounded(value * factor)) for value in affine_lengths(header.affine)]
    if header.pixdim == BLANK_PIXDIM and None not in affine:
        return [(value, "affine") for value in affine]
    pairs = zip(pixdim, affine, strict=True)
    return [(ours, "pixdim") if ours is not None else (theirs, "affine") for ours, theirs in pairs]


def _doubt_header(header: HeaderSpacing, mm: Spacing, sources: Sequence[str]) -> str | None:
    used = f"used {by(mm)} mm"
    if "affine" in sources and mm != BLANK_PIXDIM:
        return f"spacing in doubt: {used} from the header's affine, and its pixdim says {by(header.pixdim)}"
    if mm == BLANK_PIXDIM:
        return f"spacing in doubt: {used}, which also stands in a header without a spacing"
    if header.affine is not None and np.isfinite(header.affine).all():
        lengths = [value * MM_PER_UNIT[header.unit] for value in affine_lengths(header.affine)]
        if not all(_is_close(ours, theirs) for ours, theirs in zip(mm, lengths, strict=True)):
            return f"spacing in doubt: {used}, and the header's affine says {by(lengths)} mm"
    return None


def _describe(table: Sequence[float | None] | None, header: HeaderSpacing) -> str:
    unit = header.unit
    parts = [] if table is None else [f"table {by(table)} mm"]
    parts.append(f"header {by(header.pixdim)} {unit}")
    if header.affine is not None and np.isfinite(header.affine).all():
        parts.append(f"affine {by(affine_lengths(header.affine))} {unit}")
    return ", ".join(parts)


def _plausible(value: float | None) -> float | None:
    low, high = PLAUSIBLE_SPACING_MM
    return float(value) if value is not None and low <= value <= high else None


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=SPACING_TOLERANCE)
