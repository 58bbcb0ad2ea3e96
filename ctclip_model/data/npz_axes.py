"""Axes and spacing of RAD-ChestCT's arrays. A catalogue needs no more of them, and no reader of files."""

from __future__ import annotations

SPACING_MM = (0.8, 0.8, 0.8)
ORIENTATION = "xyz"


def parse_orientation(text: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The array axes (z, y, x are 0, 1, 2) in the volume's order, and for each True if it is reversed.

    Raises `ValueError` for anything except the three letters x, y and z, small or capital.

    >>> parse_orientation("xyZ")
    ((2, 1, 0), (False, False, True))
    """
    if sorted(text.lower()) != ["x", "y", "z"]:
        raise ValueError(f"orientation is {text!r}, not the letters x, y and z in some order, a capital where reversed")
    return tuple("zyx".index(letter) for letter in text.lower()), tuple(letter.isupper() for letter in text)
