"""Axes turned to LPS by a header equal the LPS original to the bit."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from ctclip_model.data.orientation import orientation_of, turn_to_lps
from ctclip_model.errors import ConfigurationError

CODES = ["".join(sides[axis] for axis in axes) for sides in itertools.product("RL", "AP", "SI")
         for axes in itertools.permutations(range(3))]  # fmt: skip


def affine_of(code: str, spacing_mm: tuple[float, ...] = (0.5, 1.5, 2.5)) -> np.ndarray:
    """The affine of an array of that orientation."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for index, side in enumerate(code):
        axis = next(number for number, sides in enumerate(("RL", "AP", "SI")) if side in sides)
        affine[axis, index] = spacing_mm[index] * (1 if side in "RAS" else -1)
    return affine


def rotated(affine: np.ndarray, degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = affine.copy()
    turned[:3, :3] = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ affine[:3, :3]
    return turned


@pytest.mark.parametrize("code", CODES)
def test_a_turned_array_is_what_nibabel_makes_of_it(code):
    array = np.random.default_rng(0).random((3, 4, 5))
    given, wanted = nib.orientations.axcodes2ornt(code), nib.orientations.axcodes2ornt("LPS")
    expected = nib.orientations.apply_orientation(array, nib.orientations.ornt_transform(given, wanted))
    assert np.array_equal(turn_to_lps(code).apply(array), expected)


@pytest.mark.parametrize("code", CODES)
def test_code_of_an_affine_survives_an_oblique_field_of_view(code):
    straight, oblique = orientation_of(affine_of(code)), orientation_of(rotated(affine_of(code), 20))
    assert straight is not None
    assert oblique is not None
    assert (straight.code, straight.list_doubts()) == (code, [])
    assert oblique.code == code
    assert oblique.oblique_degrees == pytest.approx(20)
    assert oblique.shear_degrees == pytest.approx(0, abs=1e-4)
    assert "20 degrees away" in oblique.list_doubts()[0]


@pytest.mark.parametrize(("degrees", "is_doubted"), [(4.9, False), (5.1, True), (25, True)])
def test_a_tilted_gantry_is_doubted_from_five_degrees(degrees, is_doubted):
    affine = affine_of("LPS")
    affine[1, 2] = affine[2, 2] * np.tan(np.radians(degrees))
    orientation = orientation_of(affine)
    assert orientation is not None
    assert orientation.shear_degrees == pytest.approx(degrees)
    assert any("tilted gantry" in doubt for doubt in orientation.list_doubts()) is is_doubted


def test_an_affine_without_directions_has_no_orientation():
    assert orientation_of(np.zeros((4, 4))) is None
    assert orientation_of(np.full((4, 4), np.nan)) is None
    flat = affine_of("LPS")
    flat[:, 2] = flat[:, 1]
    assert orientation_of(flat) is None


def test_stored_arrays_are_left_as_they_lie():
    assert not turn_to_lps("stored").permutes
    assert turn_to_lps("stored") == turn_to_lps("LPS")


@pytest.mark.parametrize("code", ["", "LP", "XYZ", "LRS", "lps", "LLS", "LPSA"])
def test_what_is_no_code_is_refused(code):
    with pytest.raises(ConfigurationError, match="no orientation"):
        turn_to_lps(code)
