"""Spacing comes from the table, else from pixdim, else from the affine, in the header's unit."""

from __future__ import annotations

import numpy as np
import pytest

from ctclip_model.data.spacing import HeaderSpacing, affine_lengths, decide_spacing, shortest_decimal

FLOAT32 = float(np.float32(0.7))  # 0.699999988


def affine(*lengths: float) -> np.ndarray:
    return np.diag([*lengths, 1.0])


def header(*pixdim: float, of: np.ndarray | None = None, unit: str = "mm") -> HeaderSpacing:
    first, second, third = pixdim
    return HeaderSpacing((first, second, third), of, unit)


@pytest.mark.parametrize(
    ("stated", "mm", "source"),
    [
        (header(0.7, 0.7, 1.5), (0.7, 0.7, 1.5), "pixdim"),
        (header(-0.7, -0.7, -1.5), (0.7, 0.7, 1.5), "pixdim"),
        (header(FLOAT32, FLOAT32, 1.5), (0.7, 0.7, 1.5), "pixdim"),
        (header(0.0007, 0.0007, 0.0015, unit="m"), (0.7, 0.7, 1.5), "pixdim"),
        (header(700, 700, 1500, unit="µm"), (0.7, 0.7, 1.5), "pixdim"),
        (header(0, 0, 0, of=affine(-0.7, -0.7, 1.5)), (0.7, 0.7, 1.5), "affine"),
        (header(float("nan"), 0, 0, of=affine(-0.7, -0.7, 1.5)), (0.7, 0.7, 1.5), "affine"),
        (header(1, 1, 1, of=affine(FLOAT32, FLOAT32, 1.5)), (0.7, 0.7, 1.5), "affine"),
        (header(1, 1, 1, of=affine(1, 1, 1)), (1.0, 1.0, 1.0), "affine"),
        (header(1, 1, 1), (1.0, 1.0, 1.0), "pixdim"),
    ],
)
def test_a_header_alone_gives_the_spacing(stated, mm, source):
    decided = decide_spacing(None, stated)
    assert decided.mm == mm
    assert decided.sources == (source,) * 3


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (header(7, 7, 7, unit="µm"), "7 x 7 x 7 µm"),
        (header(700, 700, 1500, unit="m"), "700 x 700 x 1500 m"),
        (header(0, 0, 0), "0 x 0 x 0 mm"),
        (header(0, 0, 0, of=affine(0, 0, 0)), "affine 0 x 0 x 0 mm"),
        (header(100, 100, 100), "100 x 100 x 100 mm"),
    ],
)
def test_what_is_no_spacing_is_refused_with_its_numbers_and_unit(stated, words):
    with pytest.raises(ValueError, match="no usable spacing") as caught:
        decide_spacing(None, stated)
    assert words in str(caught.value)


def test_the_table_wins_and_a_conflict_is_noted():
    decided = decide_spacing((0.7, 0.7, 1.5), header(0.9, 0.9, 1.5))
    assert (decided.mm, decided.sources) == ((0.7, 0.7, 1.5), ("table",) * 3)
    assert decided.note is not None
    assert "header 0.9 x 0.9 x 1.5 mm" in decided.note


def test_the_header_fills_what_the_table_lacks_if_it_agrees_with_the_rest():
    decided = decide_spacing((0.7, 0.7, None), header(0.7, 0.7, 1.5))
    assert (decided.mm, decided.sources) == ((0.7, 0.7, 1.5), ("table", "table", "pixdim"))
    with pytest.raises(ValueError, match="no usable spacing"):
        decide_spacing((0.7, 0.7, None), header(0.9, 0.9, 1.5))


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (header(1, 1, 1), "stands in a header without a spacing"),
        (header(0.7, 0.7, 1.5, of=affine(0.7, 0.7, 3.0)), "affine says 0.7 x 0.7 x 3"),
        (header(1, 1, 1, of=affine(0.7, 0.7, 3.0)), "pixdim says 1 x 1 x 1"),
    ],
)
def test_a_doubtful_header_says_why(stated, words):
    note = decide_spacing(None, stated).note
    assert note is not None
    assert words in note


def test_numbers_of_a_header_are_the_decimals_that_they_were():
    assert shortest_decimal(FLOAT32) == 0.7
    assert shortest_decimal(0.7) == 0.7  # a float64 of NIfTI-2
    assert shortest_decimal(0.7421875) == 0.7421875
    turned = affine(FLOAT32, 0.7421875, 1.25)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    turned[:3, :3] = (rotation @ turned[:3, :3]).astype(np.float32)
    assert affine_lengths(turned) == [0.7, 0.7421875, 1.25]
