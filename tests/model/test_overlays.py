"""Overlays of patches on a CT's own grid: any orientation, crop, pad, NIfTI and DICOM."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.dicom import write_series
from support.volumes import save_nifti

from ctclip_model.config import Recipe
from ctclip_model.data import accelerators
from ctclip_model.data.dicom import list_series
from ctclip_model.data.overlays import make_header, place_patches, write_overlay
from ctclip_model.data.volume import read_volume

RECIPE = Recipe("small", spacing_mm=(3.0, 2.0, 2.0), shape=(12, 24, 24))
GRID = (3, 4, 4)  # patches of 4 x 6 x 6 voxels: 12 x 12 x 12 mm
PATCHES = ((0, 0, 0), (2, 1, 3), (1, 3, 2))
CODES = ("LPS", "RAS", "LAS", "LPI", "SPL", "PIR", "ASR", "ILA")
# Smaller than the field on all sides, larger on all sides, and both.
SHAPES = ((20, 22, 10), (36, 30, 18), (50, 40, 8))


def turned(voxels: np.ndarray, code: str, path: Path, spacing_mm=(1.6, 2.5, 3.4)) -> nib.Nifti1Image:
    """Writes an LPS array in another order of its axes, off the centre of the world."""
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    affine[:3, 3] = 30.0, -12.0, 250.0
    image = nib.Nifti1Image(voxels, affine)
    target = nib.orientations.axcodes2ornt(code)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), target))
    image.to_filename(path)
    return nib.load(path)


def dark(shape: tuple[int, ...], dtype: str = "<i2") -> np.ndarray:
    """Air with some noise, because a constant volume is refused."""
    return np.random.default_rng(0).integers(-1000, -900, shape).astype(dtype)


def one_patch(patch: tuple[int, int, int]) -> np.ndarray:
    patches = np.zeros(GRID)
    patches[patch] = -2.5
    return patches


def write_patch(source, out: Path, patch, recipe: Recipe = RECIPE, **options) -> nib.Nifti1Image:
    """The overlay of a map that is 0 except in one patch."""
    grid = place_patches(read_volume(source, recipe=recipe, **options), recipe, GRID)
    write_overlay(out, make_header(source, grid.shape), one_patch(patch), grid, "Lung nodule")
    return nib.load(out)


def patch_means(voxels: np.ndarray) -> np.ndarray:
    """Mean of the model's input in each patch."""
    depth, height, width = GRID
    return voxels.reshape(depth, 4, height, 6, width, 6).mean(axis=(1, 3, 5))


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_an_overlay_marks_is_what_the_model_sees_in_that_patch(tmp_path, shape, code, patch):
    """Voxels under the overlay are made bright. The model's own reading then finds that patch brightest, or nothing."""
    ct = turned(dark(shape), code, tmp_path / "ct.nii.gz")
    overlay = write_patch(tmp_path / "ct.nii.gz", tmp_path / "overlay.nii.gz", patch)
    assert overlay.shape == ct.shape
    assert np.array_equal(overlay.affine, ct.affine)
    marked = overlay.get_fdata()
    assert set(np.unique(marked.round(4))) <= {-2.5, 0.0}
    bright = np.where(marked, 1000, -1000).astype(np.int16)
    if not marked.any():
        assert patch == (0, 0, 0)  # in the corner, where a small CT is padded
        return
    nib.Nifti1Image(bright, ct.affine).to_filename(tmp_path / "bright.nii.gz")
    volume = read_volume(tmp_path / "bright.nii.gz", recipe=RECIPE)
    in_field = np.zeros(RECIPE.shape, bool)
    in_field[tuple(slice(*window) for window in volume.window)] = True
    means, inside = patch_means(volume.voxels), patch_means(in_field)
    assert np.unravel_index(means.argmax(), GRID) == patch
    assert means[patch] > -1000 + 2000 * 0.6 * inside[patch]
    others = np.delete(means.ravel(), np.ravel_multi_index(patch, GRID))
    assert others.max() < -500  # a neighbour shares the blend at the border at most


def test_a_marked_patch_lies_where_the_world_says(tmp_path):
    """The field is centred on the CT, so a patch's box in mm follows from its number alone."""
    for code in CODES:
        turned(dark((40, 32, 20)), code, tmp_path / "ct.nii.gz", (1.0, 1.5, 3.0))
        overlay = write_patch(tmp_path / "ct.nii.gz", tmp_path / "overlay.nii.gz", (2, 1, 3))
        places = nib.affines.apply_affine(overlay.affine, np.argwhere(overlay.get_fdata()))
        centre = nib.affines.apply_affine(overlay.affine, (np.array(overlay.shape) - 1) / 2)
        right, anterior, superior = (places - centre).T
        # 24 x 24 voxels of 2 mm: 48 mm, cut to the CT's 40 mm from left to right.
        assert (-right).min() > -12.1
        assert (-right).max() < 0.1
        assert (-anterior).min() > 11.9
        assert (-anterior).max() < 24.1
        assert superior.min() > 5.9
        assert superior.max() < 18.1
        assert len(places) == 12 * 8 * 4


def test_voxels_outside_the_models_field_are_zero(tmp_path):
    source = save_nifti(tmp_path / "ct.nii.gz", dark((60, 60, 40)), (2.0, 2.0, 3.0))
    grid = place_patches(read_volume(source, recipe=RECIPE), RECIPE, GRID)
    write_overlay(tmp_path / "o.nii.gz", make_header(source, grid.shape), np.ones(GRID), grid, "all")
    marked = nib.load(tmp_path / "o.nii.gz").get_fdata()
    assert marked[18:42, 18:42, 14:26].min() == pytest.approx(1)
    marked[18:42, 18:42, 14:26] = 0
    assert not marked.any()


def test_an_orientation_that_overrides_the_header_moves_the_patch_in_the_array_and_keeps_the_header(tmp_path):
    source = tmp_path / "ct.nii.gz"
    ct = turned(dark((24, 24, 12)), "LPS", source, (2.0, 2.0, 3.0))
    as_said, as_header = (
        write_patch(source, tmp_path / f"{code}.nii.gz", (0, 0, 0), orientation=code) for code in ("RAS", "header")
    )
    assert np.array_equal(as_said.affine, ct.affine)
    assert np.array_equal(as_said.get_fdata()[::-1, ::-1], as_header.get_fdata())
    assert as_header.get_fdata()[0, 0, 0] == pytest.approx(-2.5)


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1)])
def test_an_overlay_of_a_dicom_series_lies_where_the_series_lies(tmp_path, direction):
    write_series(tmp_path / "dicom", dark((24, 26, 12)), (2.0, 1.5, 3.0), orientation=direction)
    (series,) = list_series(tmp_path / "dicom")
    overlay = write_patch(series, tmp_path / "overlay.nii.gz", (1, 1, 1))
    assert overlay.shape == (24, 26, 12)
    assert overlay.affine == pytest.approx(series.affine, abs=1e-4)
    assert overlay.header.get_qform() == pytest.approx(series.affine, abs=1e-4)
    assert np.count_nonzero(overlay.get_fdata())


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<i2", ">i2"])
def test_a_header_keeps_what_places_the_array_and_drops_texts(tmp_path, kind, dtype):
    image = kind(dark((24, 24, 12), dtype), np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header["descrip"] = b"Doe^Jane"
    image.header["aux_file"] = b"Doe^Jane"
    image.set_qform(np.diag([-2.0, 2.0, 3.0, 1.0]), code=1)
    image.set_sform(np.diag([-2.0, -2.0, 3.0, 1.0]), code=3)
    image.to_filename(tmp_path / "ct.nii")
    overlay = write_patch(tmp_path / "ct.nii", tmp_path / "overlay.nii.gz", (0, 0, 0))
    assert type(overlay) is kind
    assert overlay.get_sform(coded=True)[1] == 3
    assert np.array_equal(overlay.get_sform(), image.get_sform())
    assert np.array_equal(overlay.get_qform(), image.get_qform())
    assert overlay.header.get_xyzt_units() == image.header.get_xyzt_units()
    assert b"Doe" not in gzip.decompress((tmp_path / "overlay.nii.gz").read_bytes())


def test_an_array_without_an_affine_and_with_a_trailing_axis_has_an_overlay(tmp_path):
    image = nib.Nifti1Image(dark((24, 24, 12, 1)), None)
    image.header["pixdim"][1:4] = 2.0, 2.0, 3.0
    image.to_filename(tmp_path / "ct.nii")
    overlay = write_patch(tmp_path / "ct.nii", tmp_path / "overlay.nii.gz", (0, 0, 0))
    assert overlay.shape == (24, 24, 12)
    assert (overlay.header["sform_code"], overlay.header["qform_code"]) == (0, 0)
    assert overlay.header.get_zooms() == (2.0, 2.0, 3.0)


@pytest.mark.parametrize("library", ["isal", "zlib"])
def test_an_overlay_is_one_small_gzip_member_with_every_value(tmp_path, monkeypatch, library):
    if library == "zlib":
        monkeypatch.setattr(accelerators, "library", zlib)
        monkeypatch.setattr(accelerators, "DEFLATE_LEVEL", 1)
    source = save_nifti(tmp_path / "ct.nii", dark((400, 300, 50)), (0.1, 0.15, 0.7))
    grid = place_patches(read_volume(source, recipe=RECIPE), RECIPE, GRID)
    patches = np.random.default_rng(0).normal(size=GRID)
    write_overlay(tmp_path / "o.nii.gz", make_header(source, grid.shape), patches, grid, "noise")
    data = (tmp_path / "o.nii.gz").read_bytes()
    member = zlib.decompressobj(31)
    content = member.decompress(data)
    assert (member.eof, member.unused_data) == (True, b"")
    assert len(content) == 352 + 2 * 400 * 300 * 50
    assert len(data) < len(content) / 20
    values = nib.load(tmp_path / "o.nii.gz").get_fdata()
    first, second, third = grid.indices  # along height, width, depth
    expected = patches.transpose(1, 2, 0)[np.ix_(first, second, third)]
    assert np.abs(values - expected).max() <= np.abs(patches).max() / 32767
