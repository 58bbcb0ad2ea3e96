"""Anatomical orientation of a volume's array axes, and the flips and permutation that turn an array to LPS.

Codes name the side towards which an index grows: `LPS` is an array whose first axis runs to the patient's left, the
second to posterior, the third to superior. CT-RATE's arrays are LPS, and the published model knows no other order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ctclip_model.data.names import STORED
from ctclip_model.errors import ConfigurationError

LPS = "LPS"
OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}
T = TypeVar("T")

WORLD_CODES = ("RL", "AP", "SI")  # NIfTI's world axes grow towards the first of each pair
OBLIQUE_DOUBT_DEGREES = 10.0
SHEAR_DOUBT_DEGREES = 5.0


@dataclass(frozen=True)
class Turn:
    """Flips and permutation from an array's own axes to LPS.

    `axes[i]` is the array axis that becomes axis i of the result. `flips[i]` says that axis i is reversed.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def permutes(self) -> bool:
        return self.axes != (0, 1, 2)

    def apply(self, array: NDArray) -> NDArray:
        """View of a three-dimensional array in LPS order."""
        slices = tuple(slice(None, None, -1 if is_flipped else 1) for is_flipped in self.flips)
        return array.transpose(self.axes)[slices]

    def restore(self, values: Sequence[T]) -> tuple[T, T, T]:
        """Values by axis of the result, such as a spacing, in the order of the array's own axes.

        >>> Turn(axes=(0, 2, 1)).restore(["left", "posterior", "superior"])
        ('left', 'superior', 'posterior')
        """
        by_axis = dict(zip(self.axes, values, strict=True))
        return by_axis[0], by_axis[1], by_axis[2]


@dataclass(frozen=True)
class Orientation:
    """Orientation that a header's affine gives.

    `oblique_degrees` is the rotation away from the nearest axes. `shear_degrees` is the largest departure of two array
    axes from a right angle, which a tilted gantry leaves.
    """

    code: str
    oblique_degrees: float
    shear_degrees: float

    def list_doubts(self) -> list[str]:
        """Warnings about axes that flips and a permutation cannot bring to LPS exactly."""
        doubts = []
        if self.shear_degrees >= SHEAR_DOUBT_DEGREES:
            doubts.append(
                f"orientation in doubt: the slices are sheared by {self.shear_degrees:.0f} degrees (a tilted gantry), "
                "and shear is not corrected"
            )
        if self.oblique_degrees >= OBLIQUE_DOUBT_DEGREES:
            doubts.append(
                f"orientation in doubt: the axes are {self.oblique_degrees:.0f} degrees away from {self.code}, "
                "the nearest orientation"
            )
        return doubts


def orientation_of(affine: NDArray) -> Orientation | None:
    """Orientation of the array axes by an affine (4, 4) from voxel indices to mm towards right, anterior, superior.

    None for an affine that is singular or not finite.
    """
    directions = np.asarray(affine, float)[:3, :3]
    lengths = np.linalg.norm(directions, axis=0)
    if not (np.isfinite(directions).all() and (lengths > 0).all()):
        return None
    directions = directions / lengths
    left, sizes, right = np.linalg.svd(directions)
    if sizes[-1] < 1e-3:
        return None
    rotation = left @ right  # the orthogonal matrix nearest to the directions
    world = _nearest_axes(rotation)
    code = "".join(WORLD_CODES[axis][0 if rotation[axis, index] > 0 else 1] for index, axis in enumerate(world))
    straight = np.zeros((3, 3))
    for index, axis in enumerate(world):
        straight[axis, index] = math.copysign(1.0, rotation[axis, index])
    cosine = (np.trace(straight.T @ rotation) - 1) / 2
    between = [abs(float(directions[:, one] @ directions[:, other])) for one, other in ((0, 1), (0, 2), (1, 2))]
    return Orientation(
        code,
        oblique_degrees=math.degrees(math.acos(min(1.0, max(-1.0, float(cosine))))),
        shear_degrees=math.degrees(math.asin(min(1.0, max(between)))),
    )


def turn_to_lps(code: str) -> Turn:
    """Flips and permutation that turn an array of that orientation to LPS. Raises `ConfigurationError` for no code."""
    check_code(code)
    if code == STORED:
        return Turn()
    axes = tuple(next(index for index, side in enumerate(code) if side in (wanted, OPPOSITE[wanted])) for wanted in LPS)
    flips = tuple(code[axis] != wanted for axis, wanted in zip(axes, LPS, strict=True))
    return Turn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def check_code(code: str) -> None:
    """Raises `ConfigurationError` for what is neither `stored` nor three letters, one for each direction."""
    if code != STORED and sorted(min(side, OPPOSITE.get(side, side)) for side in code) != ["A", "I", "L"]:
        raise ConfigurationError(
            f"there is no orientation {code!r}: give `{STORED}` or three letters, one of L R, one of P A, one of S I"
        )


def _nearest_axes(rotation: NDArray) -> Sequence[int]:
    """World axis of each array axis: the permutation with the largest sum of absolute cosines."""
    size = np.abs(rotation)
    permutations = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    return max(permutations, key=lambda world: sum(size[axis, index] for index, axis in enumerate(world)))
