"""Judgement of a volume's values: are they Hounsfield units?

The judge reads a sample of voxels and looks for air, lung, fat and soft tissue at their places on the Hounsfield scale.
Conversion rejects a volume that fails. A person's own volume is only doubted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FIELD_HU = (-1100.0, 4000.0)  # tissue and metal of a field of view, and nothing that pads it
DENSER_THAN_LUNG_HU = -600.0
AIR_HU = (-1100.0, -600.0)  # air and aerated lung
TISSUE_HU = (-200.0, 200.0)  # fat to contrast-filled muscle
PEAK_HU = (-190.0, 190.0)  # the most frequent tissue of every body part lies here
PEAK_WIDTH_HU = 60.0
LEAST_BESIDE_LUNG = 0.2  # share of fat and soft tissue in dense matter, beside a consolidated lung
LEAST_PEAK = 0.08  # share of dense matter in the peak; less is noise
SHIFTS = (1024, -1024, 1000, -1000, 8192, -8192)  # intercepts of CT scanners, left out or added once more

LEAST_VOXELS = 5_000  # voxels; fewer show no body
LEAST_FIELD = 0.003  # share of all voxels
LEAST_RANGE_HU = 300.0  # from fat to bone
LEAST_LOW = 0.1  # share of values that spread below all air
LEAST_TISSUE = 0.01  # share of fat and soft tissue
LEAST_DENSE = 0.04  # share of matter denser than lung
MOST_LOST = 0.002  # share of fat and lung where negative values are lost, and of values that wrapped around
MOST_NEGATIVE = 0.02  # share of values below -30 among stored values, for noise
LEAST_SHARE = 0.1  # least share of air and of soft tissue at shifted places
# Weights of a range of values against the opposite range: of their contrast, and of the difference of their shares.
# Fitted to generated volumes and their inverted twins by benchmarks/fit_sign_weights.py.
SIGN_WEIGHTS = {
    (0.0, 50.0): (8.1, 21.0), (50.0, 100.0): (3.6, 3.0), (100.0, 150.0): (-2.1, -8.0), (150.0, 300.0): (2.3, -15.0),
    (300.0, 500.0): (6.2, -29.0), (500.0, 900.0): (-0.6, -20.0), (900.0, 1100.0): (-8.4, -16.0),
    (1100.0, 3000.0): (10.0, 0.0),
}  # fmt: skip
LEAST_WEIGHED = 0.02  # share added to the sum of two ranges, so that empty ones have no contrast
LEAST_SIGN = -1.2  # below it values are inverted
CUT_BELOW_HU, CUT_ABOVE_HU = -900.0, 900.0  # air and bone reach beyond these unless a window cut them off
LEAST_CUT = 0.01  # share of values at the end of a window
LEAST_NARROW_SHARE = 0.01  # the same where the tissue is a narrow peak, which bone never makes
NARROW = 0.4  # share of a tissue range that its densest 120 HU hold
MORE_THERE = 4  # times as many voxels at the wrong place as at the right one


@dataclass(frozen=True)
class ValueFault:
    """Reason code of a reject, and the evidence in words."""

    reason: str
    evidence: str


def judge_values(hu: NDArray) -> ValueFault | None:
    """The fault of a sample of voxels (N,) that are not HU. None where nothing speaks against them.

    Padding does not count: the values below every tissue, and the lowest value.
    """
    values = np.sort(np.asarray(hu, np.float64).ravel())
    if values.size < LEAST_VOXELS or values[0] == values[-1]:
        return None
    inside = without_padding(values)
    if inside.size == 0:
        return ValueFault("not_hu", f"voxels hold {values[0]:g} and {values[-1]:g} alone")
    return (
        _find_small_range(values, inside)
        or _find_shift(inside)
        or _find_empty_field(values, inside)
        or _find_no_negative(values, inside)
        or _find_window(values)
        or _find_no_tissue(inside)
        or _find_misplaced_peak(inside)
        or _find_inverted(inside)
        or _find_low_air(inside)
    )


def without_padding(values: NDArray) -> NDArray:
    """Sorted values without the lowest and without the most frequent one, where either is a spike.

    Padding may be off by one after rounding.
    """
    spikes = [values[0]]
    _, start = _densest(values, 2.0)
    near = np.searchsorted(values, [start - 20, start - 0.5, start + 2.5, start + 22])
    around, spike = (near[1] - near[0]) + (near[3] - near[2]), near[2] - near[1]
    if spike > max(0.02 * values.size, 2 * around):
        spikes.append(start + 1)
    for spike in spikes:
        first, last = np.searchsorted(values, [spike - 1.6, spike + 1.6])
        values = np.concatenate([values[:first], values[last:]])
    return values


def _find_small_range(values: NDArray, inside: NDArray) -> ValueFault | None:
    """Masks, z-scores, [0, 1], [-1, 1] and [0, 255] span less than the way from fat to bone."""
    low, high = np.quantile(inside, [0.001, 0.999])
    if high - low >= LEAST_RANGE_HU:
        return None
    return ValueFault(
        "not_hu", f"values run from {low:.4g} to {high:.4g}, and fat to bone alone spans {LEAST_RANGE_HU:g} HU"
    )


def _find_window(values: NDArray) -> ValueFault | None:
    """A window cut values off: many share the lowest or the highest value, where a body goes on."""
    body = values[np.searchsorted(values, FIELD_HU[0]) :]  # padding may lie below the window
    if body.size == 0:
        return None
    least, most = body[0], body[-1]
    at_least, at_most = (share_within(values, (end - 0.5, end + 0.5)) for end in (least, most))
    if (least > CUT_BELOW_HU and at_least > LEAST_CUT) or (most < CUT_ABOVE_HU and at_most > LEAST_CUT / 3):
        return ValueFault(
            "not_hu",
            f"values are cut off: {at_least:.1%} of the voxels hold {least:.4g}, the lowest value of the body, and "
            f"{at_most:.1%} hold {most:.4g}, the highest",
        )
    return None


def _find_shift(inside: NDArray) -> ValueFault | None:
    """Air and soft tissue stand together where a known intercept would have put them by mistake."""
    here = min(share_within(inside, AIR_HU), share_within(inside, TISSUE_HU))
    negative = share_within(inside, (-900.0, -30.0))
    for shift in SHIFTS:
        if shift > 0 and negative > MOST_NEGATIVE:
            continue  # stored values are not negative
        air, tissue = (share_within(inside, (low + shift, high + shift)) for low, high in (AIR_HU, TISSUE_HU))
        both = min(air, tissue)
        is_narrow = both > LEAST_NARROW_SHARE and _is_narrow(inside, shift)
        if both > max(LEAST_NARROW_SHARE if is_narrow else LEAST_SHARE, MORE_THERE * here):
            mistake = f"{shift:+d} was added twice" if shift < 0 else f"{-shift:+d} was not added"
            return ValueFault(
                "rescaled_twice" if shift < 0 else "not_rescaled",
                f"{air:.1%} of the voxels look like air and {tissue:.1%} like soft tissue, but {shift:+d} HU from "
                f"their places: as if {mistake}",
            )
    return None


def _is_narrow(inside: NDArray, shift: int) -> bool:
    """Soft tissue at that shift is a peak with a valley below it. Bone spreads over a thousand HU."""
    low, high = (bound + shift for bound in TISSUE_HU)
    tissue = inside[(inside > low) & (inside < high)]
    valley = share_within(inside, (low - 300, low - 50)) / 250
    return _densest(tissue, 120.0)[0] > NARROW and valley < 0.5 * tissue.size / inside.size / (high - low)


def _find_empty_field(values: NDArray, inside: NDArray) -> ValueFault | None:
    """Values that wrapped around or moved by 32,768 leave nothing where a body should be."""
    share = np.count_nonzero((inside > FIELD_HU[0]) & (inside < FIELD_HU[1])) / values.size
    above = share_within(inside, (FIELD_HU[1], np.inf))
    if share < LEAST_FIELD or above > 0.1 or share_within(inside, (31_000, np.inf)) > MOST_LOST:
        return ValueFault(
            "not_hu",
            f"{share:.1%} of the voxels lie between {FIELD_HU[0]:g} and {FIELD_HU[1]:g} HU, where all tissue lies, "
            f"and {above:.1%} above: values have wrapped around or moved",
        )
    return None


def _find_no_negative(values: NDArray, inside: NDArray) -> ValueFault | None:
    """Every body shows fat or lung. Values cut off at 0 or without their sign show neither.

    Brain in a tight field of view has no fat either, and nothing between brain and bone.
    """
    negative = share_within(inside, (-900.0, -0.5))
    zeros = share_within(values, (-0.5, 0.5))
    above_brain = share_within(inside, (75.0, 150.0))
    if negative < MOST_LOST and (zeros > 0.05 or above_brain > 0.02):
        return ValueFault("not_hu", f"{negative:.1%} of the voxels are fat or lung: negative values are lost")
    return None


def _find_no_tissue(inside: NDArray) -> ValueFault | None:
    """Fat and soft tissue are in every field of view."""
    tissue = share_within(inside, TISSUE_HU)
    if tissue >= LEAST_TISSUE:
        return None
    return ValueFault("not_hu", f"{tissue:.1%} of the voxels are fat or soft tissue, so they may not be HU")


def _find_misplaced_peak(inside: NDArray) -> ValueFault | None:
    """Fat or soft tissue is the most frequent matter denser than lung in every body part."""
    dense = inside[inside > DENSER_THAN_LUNG_HU]
    if dense.size < LEAST_DENSE * inside.size:
        return ValueFault("not_hu", f"{dense.size / inside.size:.1%} of the voxels are denser than lung")
    share, start = _densest(dense, PEAK_WIDTH_HU)
    middle = start + PEAK_WIDTH_HU / 2
    has_dense_lung = middle < PEAK_HU[0] and share_within(dense, TISSUE_HU) > LEAST_BESIDE_LUNG
    if share < LEAST_PEAK or PEAK_HU[0] <= middle <= PEAK_HU[1] or has_dense_lung:
        return None
    return ValueFault(
        "not_hu",
        f"the most frequent matter denser than lung has {middle:.0f} HU, and fat and soft tissue lie between "
        f"{PEAK_HU[0]:g} and {PEAK_HU[1]:g}",
    )


def weigh_sign(inside: NDArray) -> float:
    """Evidence that sorted values are upright: muscle against fat, bone against air and lung. Inverted: negative."""
    sign = 0.0
    for (low, high), weights in SIGN_WEIGHTS.items():
        share, opposite = share_within(inside, (low, high)), share_within(inside, (-high, -low))
        contrast = (share - opposite) / (share + opposite + LEAST_WEIGHED)
        sign += weights[0] * contrast + weights[1] * (share - opposite)
    return sign


def _find_inverted(inside: NDArray) -> ValueFault | None:
    """Inverted values have muscle where fat should be, and air where bone should be."""
    if weigh_sign(inside) >= LEAST_SIGN:
        return None
    muscle, opposite = share_within(inside, (20.0, 80.0)), share_within(inside, (-80.0, -20.0))
    return ValueFault(
        "not_hu",
        f"values look inverted: {muscle:.1%} of the voxels have the values of muscle and {opposite:.1%} the opposite, "
        f"and {share_within(inside, (700.0, 1100.0)):.1%} the opposite of air and lung",
    )


def _find_low_air(inside: NDArray) -> ValueFault | None:
    """Air lies 1,000 HU below water. A wide peak far below is air of another scale. Padding is narrow."""
    below = inside[inside < -1300]
    if below.size > LEAST_LOW * inside.size and np.quantile(below, 0.8) - np.quantile(below, 0.2) > 10:
        return ValueFault(
            "not_hu", f"{below.size / inside.size:.1%} of the voxels spread below -1300 HU, under all air"
        )
    return None


def share_within(values: NDArray, bounds: tuple[float, float]) -> float:
    """Share of sorted values between two bounds."""
    first, last = np.searchsorted(values, bounds)
    return float(last - first) / max(values.size, 1)


def _densest(values: NDArray, width: float) -> tuple[float, float]:
    """The largest share of sorted values within any interval of that width, and the interval's lower end."""
    if values.size == 0:
        return 0.0, 0.0
    counts = np.searchsorted(values, values + width, side="right") - np.arange(values.size)
    best = int(counts.argmax())
    return float(counts[best]) / values.size, float(values[best])
