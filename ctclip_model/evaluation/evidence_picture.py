"""A picture of evidence: axial, coronal and sagittal slices of a CT through a patch, with the map over them.

Slices are those that the model reads. They are shown as radiologists look at them: the patient's right is on the left,
anterior is on top or on the left, the head is on top. Lengths in mm are true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PANEL = 320  # pixels of the longest side of the model's field
MARGIN, TITLE, CAPTION, LEGEND = 16, 30, 22, 40  # pixels
SHOWN_HU = (-1000, 400)  # lung and soft tissue in one picture
RAISING, LOWERING = (255, 110, 0), (60, 140, 255)  # colours of positive and negative parts
OPACITY = 0.65  # share of the colour where a part is largest
BACKGROUND, INK, FAINT, OUTLINE = (16, 16, 18), (240, 240, 240), (165, 165, 170), (255, 255, 255)


@dataclass(frozen=True)
class Plane:
    """A cut through (depth, height, width): the axis cut, and the letters on its left, right, top and bottom."""

    name: str
    cut: int
    letters: tuple[str, str, str, str]


# Depth runs to superior, height to the left, width to posterior (`Recipe`).
PLANES = (
    Plane("axial", 0, ("R", "L", "A", "P")),
    Plane("coronal", 2, ("R", "L", "S", "I")),
    Plane("sagittal", 1, ("A", "P", "S", "I")),
)


@dataclass(frozen=True)
class Row:
    """One abnormality of a picture: its title, its map (depth, height, width), and the patch that is cut through."""

    title: str
    parts: NDArray[np.floating]
    patch: tuple[int, int, int]


def draw_evidence(
    volume: NDArray[np.floating], spacing_mm: tuple[float, float, float], rows: Sequence[Row], title: str
) -> Image.Image:
    """Draws a row of three slices for each abnormality.

    `volume` (depth, height, width) is the model's input in [-1, 1], and `spacing_mm` its recipe's.
    """
    sizes = _panel_sizes(volume, spacing_mm)
    row_height = TITLE + CAPTION + max(_size_of(plane, sizes)[1] for plane in PLANES)
    width = sum(_size_of(plane, sizes)[0] for plane in PLANES) + MARGIN * (len(PLANES) + 1)
    height = MARGIN + TITLE + row_height * len(rows) + LEGEND
    picture = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    _write(pen, (MARGIN, MARGIN), title, INK, 18)
    for number, row in enumerate(rows):
        top = MARGIN + TITLE + number * row_height
        _write(pen, (MARGIN, top + 4), row.title, INK, 16)
        left = MARGIN
        for plane in PLANES:
            panel = _draw_panel(volume, row, plane, _size_of(plane, sizes))
            picture.paste(panel, (left, top + TITLE))
            _write(pen, (left, top + TITLE + panel.height + 3), plane.name, FAINT, 13)
            left += panel.width + MARGIN
    _draw_legend(pen, height - LEGEND + 8)
    return picture


def draw_panels(
    volume: NDArray[np.floating], spacing_mm: tuple[float, float, float], row: Row
) -> list[tuple[str, Image.Image]]:
    """The three slices of one abnormality, each with its plane's name. Arguments are those of `draw_evidence`."""
    sizes = _panel_sizes(volume, spacing_mm)
    return [(plane.name, _draw_panel(volume, row, plane, _size_of(plane, sizes))) for plane in PLANES]


def _panel_sizes(volume: NDArray[np.floating], spacing_mm: tuple[float, float, float]) -> list[int]:
    """Pixels of depth, height and width, so that lengths in mm are true."""
    scale = PANEL / max(size * spacing for size, spacing in zip(volume.shape, spacing_mm, strict=True))  # pixels per mm
    return [max(1, round(size * spacing * scale)) for size, spacing in zip(volume.shape, spacing_mm, strict=True)]


def _size_of(plane: Plane, sizes: Sequence[int]) -> tuple[int, int]:
    """Width and height in pixels of a plane, by the sizes of depth, height, width."""
    depth, height, width = sizes
    return {0: (height, width), 1: (width, depth), 2: (height, depth)}[plane.cut]


def _cut(array: NDArray, plane: Plane, index: int) -> NDArray:
    """The slice (rows, columns) of an array (depth, height, width), as it is looked at."""
    cut = array.take(index, axis=plane.cut)
    return cut.T if plane.cut == 0 else cut[::-1]  # (width, height), or depth downwards


def _draw_panel(volume: NDArray[np.floating], row: Row, plane: Plane, size: tuple[int, int]) -> Image.Image:
    voxels = volume.shape[plane.cut] // row.parts.shape[plane.cut]  # voxels of a patch along the cut axis
    patch = row.patch[plane.cut]
    low, high = (value / 1000 for value in SHOWN_HU)
    grey = (_cut(volume, plane, patch * voxels + voxels // 2) - low) / (high - low)
    panel = Image.fromarray((grey.clip(0, 1) * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    panel = panel.convert("RGB")
    share = _cut(row.parts, plane, patch) / (np.abs(row.parts).max() or 1.0)
    mask = Image.fromarray((np.abs(share).clip(0, 1) * OPACITY * 255).astype(np.uint8))
    colour = np.where((share > 0)[..., None], RAISING, LOWERING).astype(np.uint8)
    nearest = Image.Resampling.NEAREST
    panel.paste(Image.fromarray(colour).resize(size, nearest), mask=mask.resize(size, nearest))
    _mark(panel, row, plane)
    return panel


def _mark(panel: Image.Image, row: Row, plane: Plane) -> None:
    """Draws the outline of the patch that is cut through, and the patient's sides."""
    chosen = np.zeros(row.parts.shape, bool)
    chosen[row.patch] = True
    at = _cut(chosen, plane, row.patch[plane.cut])
    (down,), (across,) = np.nonzero(at)
    (rows, columns), (width, height) = at.shape, panel.size
    box = (across * width / columns, down * height / rows, (across + 1) * width / columns, (down + 1) * height / rows)
    pen = ImageDraw.Draw(panel)
    pen.rectangle([round(value) for value in box], outline=OUTLINE)
    left, right, top, bottom = plane.letters
    for letter, place, anchor in (
        (left, (4, height / 2), "lm"), (right, (width - 4, height / 2), "rm"),
        (top, (width / 2, 4), "ma"), (bottom, (width / 2, height - 4), "md"),
    ):  # fmt: skip
        _write(pen, place, letter, INK, 14, anchor)


def _draw_legend(pen: ImageDraw.ImageDraw, top: int) -> None:
    left = float(MARGIN)
    for colour, text in ((RAISING, "raises the score"), (LOWERING, "lowers it"), (None, "frame: strongest patch")):
        if colour is not None:
            pen.rectangle([left, top + 2, left + 12, top + 14], fill=colour)
            left += 18
        _write(pen, (left, top), text, FAINT, 13)
        left += pen.textlength(text, font=ImageFont.load_default(13)) + 18
    _write(pen, (left, top), "For research, not for diagnosis.", FAINT, 13)


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: tuple[int, int, int], size: int,
    anchor: str = "la",
) -> None:  # fmt: skip
    pen.text(place, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)
