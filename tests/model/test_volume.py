"""Conversion against the published numbers, a plain reference, and every kind of bad file."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support.volumes import RECIPE, convert_plainly, load_golden_volume, make_noise, reason_of_refusal, save_nifti

from ctclip_model.data.volume import convert_volume, load_volume
from ctclip_model.errors import VolumeError


@pytest.mark.parametrize("name", ["train_1_a_1", "train_2_a_1", "train_3_a_1", "valid_1_a_1", "valid_2_b_2"])
def test_golden_volume_is_the_published_one(name):
    path, options, expected = load_golden_volume(name)
    parts = tuple(slice(*bounds) for bounds in zip(expected["lo"], expected["hi"], expected["step"], strict=True))
    volume = load_volume(path, **options)
    assert volume.shape == (1, 240, 480, 480)
    assert volume.dtype == torch.float32
    assert np.abs(volume[0].numpy()[parts] - expected["sub"]).max() < 1e-5
    assert np.abs(volume[0, 120, ::4, ::4].numpy() - expected["axial"]).max() < 1e-5
    assert np.isclose(volume.double().mean(), expected["mean"], atol=1e-6)
    assert np.isclose(volume.double().std(), expected["std"], atol=1e-6)
    converted = convert_volume(path, **options)
    assert converted.voxels.dtype == np.int16
    assert np.abs(converted.voxels[parts] / 1000 - expected["sub"]).max() < 5.1e-4
    assert converted.window == tuple(zip(expected["lo"], expected["hi"], strict=True))


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 3.0), (0.7, 5.0, 1.1), (3.1, 3.1, 0.6), (9.0, 1.0, 12.0)])
@pytest.mark.parametrize("shape", [(13, 17, 20), (40, 9, 8)])
def test_any_size_and_spacing_match_the_plain_way(tmp_path, shape, spacing):
    hu = make_noise(shape)
    path = save_nifti(tmp_path / "a.nii.gz", hu)
    expected = convert_plainly(hu, spacing, RECIPE)
    ours = load_volume(path, spacing_mm=spacing, recipe=RECIPE)[0].numpy()
    assert np.abs(ours - expected).max() < 1e-6
    assert np.abs(convert_volume(path, spacing_mm=spacing, recipe=RECIPE).voxels / 1000 - expected).max() < 5.01e-4


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<u2", "<i4", ">i4", "<i8", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_voxel_type_and_byte_order_reads_the_same(tmp_path, dtype, suffix):
    hu = make_noise((12, 11, 10), low=0, high=255)
    expected = convert_volume(save_nifti(tmp_path / "a.nii", hu), recipe=RECIPE)
    ours = convert_volume(save_nifti(tmp_path / f"b{suffix}", hu.astype(dtype)), recipe=RECIPE)
    assert np.array_equal(ours.voxels, expected.voxels)
    assert (ours.hu_min, ours.hu_max, ours.shape_in) == (hu.min(), hu.max(), hu.shape)


def test_nifti_2_and_a_fourth_axis_of_one_read_the_same(tmp_path):
    hu = make_noise((12, 11, 10))
    expected = convert_volume(save_nifti(tmp_path / "a.nii", hu), recipe=RECIPE).voxels
    second = save_nifti(tmp_path / "b.nii.gz", hu[..., None], kind=nib.Nifti2Image)
    assert np.array_equal(convert_volume(second, recipe=RECIPE).voxels, expected)


def test_the_files_scaling_comes_before_the_tables(tmp_path):
    stored = make_noise((12, 11, 10), low=0, high=400)
    plain = convert_volume(save_nifti(tmp_path / "a.nii", (stored * 2 - 100) * 3 - 800), recipe=RECIPE)
    path = save_nifti(tmp_path / "b.nii", stored)
    block = bytearray(path.read_bytes())
    struct.pack_into("<ff", block, 112, 2.0, -100.0)
    path.write_bytes(block)
    scaled = convert_volume(path, slope=3.0, intercept=-800.0, recipe=RECIPE)
    assert np.array_equal(scaled.voxels, plain.voxels)
    assert (scaled.hu_min, scaled.hu_max) == (plain.hu_min, plain.hu_max)


def test_statistics_are_those_of_the_source(tmp_path):
    hu = make_noise((12, 11, 37), low=-3000, high=3000)  # too few voxels to be judged
    converted = convert_volume(save_nifti(tmp_path / "a.nii.gz", hu), recipe=RECIPE)
    clipped = np.clip(hu, -1000, 1000).astype(float)
    assert (converted.hu_min, converted.hu_max) == (hu.min(), hu.max())
    assert np.isclose(converted.hu_mean, clipped.mean(), atol=0.01)
    assert np.isclose(converted.hu_std, clipped.std(), atol=0.01)


def gz(path: Path) -> Path:
    return save_nifti(path, make_noise((12, 11, 10)))


def test_a_missing_file_is_refused(tmp_path):
    assert reason_of_refusal(tmp_path / "a.nii.gz") == "missing_file"
    assert reason_of_refusal(tmp_path) == "missing_file"


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = gz(tmp_path / "a.nii.gz")
    content = path.read_bytes()
    path.write_bytes(content[: max(12, int(len(content) * kept))])
    assert reason_of_refusal(path) == "truncated"
    plain = save_nifti(tmp_path / "b.nii", make_noise((12, 11, 10)))
    plain.write_bytes(plain.read_bytes()[:-1])
    assert reason_of_refusal(plain) == "truncated"


def test_a_wrong_checksum_is_refused(tmp_path):
    path = gz(tmp_path / "a.nii.gz")
    block = bytearray(path.read_bytes())
    block[-8] ^= 1
    path.write_bytes(block)
    assert reason_of_refusal(path) == "bad_crc"


def test_a_damaged_stream_is_refused_wherever_the_damage_is(tmp_path):
    path = gz(tmp_path / "a.nii.gz")
    content = path.read_bytes()
    for position in range(10, len(content), 97):
        block = bytearray(content)
        block[position] ^= 0x55
        path.write_bytes(block)
        assert reason_of_refusal(path) in {
            "bad_crc",
            "truncated",
            "oversized_header",
            "not_nifti",
            "trailing_data",
            "not_3d",
        }


def test_what_follows_the_voxels_is_refused(tmp_path):
    path = gz(tmp_path / "a.nii.gz")
    content = path.read_bytes()
    path.write_bytes(content + b"garbage")
    assert reason_of_refusal(path) == "trailing_data"
    path.write_bytes(gzip.compress(gzip.decompress(content) + b"\0x"))
    assert reason_of_refusal(path) == "trailing_data"


def test_a_gzip_of_several_members_is_whole(tmp_path):
    path = gz(tmp_path / "a.nii.gz")
    expected = convert_volume(path, recipe=RECIPE).voxels
    plain = gzip.decompress(path.read_bytes())
    path.write_bytes(b"".join(gzip.compress(plain[start : start + 1000]) for start in range(0, len(plain), 1000)))
    assert np.array_equal(convert_volume(path, recipe=RECIPE).voxels, expected)


def test_a_header_that_promises_a_little_more_is_refused(tmp_path):
    path = gz(tmp_path / "a.nii.gz")
    block = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<h", block, 46, 11)
    path.write_bytes(gzip.compress(block))
    assert reason_of_refusal(path) == "oversized_header"


def test_what_is_no_nifti_is_refused(tmp_path):
    path = tmp_path / "a.nii.gz"
    for content in (b"\x89PNG\r\n\x1a\n" + bytes(1000), gzip.compress(b"hello"), gzip.compress(bytes(5000))):
        path.write_bytes(content)
        assert reason_of_refusal(path) == "not_nifti"


@pytest.mark.parametrize("code", [32, 128, 16384, -1])  # complex, colour and two that do not exist
def test_voxels_that_are_no_plain_numbers_are_refused(tmp_path, code):
    path = save_nifti(tmp_path / "a.nii", make_noise((12, 11, 10)))
    block = bytearray(path.read_bytes())
    struct.pack_into("<h", block, 70, code)
    path.write_bytes(block)
    assert reason_of_refusal(path) == "bad_dtype"


def test_volumes_of_the_wrong_shape_are_refused(tmp_path):
    assert reason_of_refusal(save_nifti(tmp_path / "a.nii.gz", make_noise((8, 8, 8, 2)))) == "not_3d"
    assert reason_of_refusal(save_nifti(tmp_path / "b.nii.gz", make_noise((8, 8)))) == "not_3d"
    assert reason_of_refusal(save_nifti(tmp_path / "c.nii.gz", make_noise((8, 8, 1)))) == "too_few_slices"
    assert (
        reason_of_refusal(save_nifti(tmp_path / "d.nii.gz", make_noise((8, 8, 2))), spacing_mm=(1, 1, 1))
        == "too_few_slices"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_refused(tmp_path, value):
    hu = make_noise((12, 11, 10), "<f4")
    hu[3, 4, 9] = value
    assert reason_of_refusal(save_nifti(tmp_path / "a.nii.gz", hu)) == "nan_voxels"


def test_a_volume_of_one_value_is_refused(tmp_path):
    assert reason_of_refusal(save_nifti(tmp_path / "a.nii.gz", np.zeros((12, 11, 10), "<i2"))) == "all_zero"
    assert reason_of_refusal(save_nifti(tmp_path / "b.nii.gz", np.full((12, 11, 10), -1024, "<i2"))) == "constant"


@pytest.mark.parametrize("offset", [42, 46])  # the first and the third dimension
def test_a_header_that_promises_more_than_the_file_can_hold_is_refused_unread(tmp_path, offset):
    path = gz(tmp_path / "a.nii.gz")
    block = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<h", block, offset, 32767)
    path.write_bytes(gzip.compress(block))
    with pytest.raises(VolumeError, match=r"promises .* \[oversized_header\]"):
        convert_volume(path, recipe=RECIPE)


def test_a_plane_too_large_for_memory_is_refused_before_it_is_allocated(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype("u1")
    header.set_data_shape((32767, 32767, 3))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    compressor = zlib.compressobj(9, wbits=31)
    content = compressor.compress(header.binaryblock + bytes(4)) + compressor.flush()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content + np.random.default_rng(0).bytes(4_000_000))
    assert reason_of_refusal(path) == "oversized_header"


@pytest.mark.parametrize("options", [{"slope": 0.0}, {"slope": np.nan}, {"intercept": np.inf}, {"slope": None}])
def test_rescaling_that_makes_no_hu_is_refused(tmp_path, options):
    assert reason_of_refusal(gz(tmp_path / "a.nii.gz"), **options) == "bad_rescale"


def test_hu_beyond_all_sense_are_refused(tmp_path):
    for slope in (1e9, -1e9, 1e300):
        assert reason_of_refusal(gz(tmp_path / "a.nii.gz"), slope=slope) == "bad_rescale"


@pytest.mark.parametrize("z", [0.0, -1.0, np.nan, np.inf, 0.035, 50.0, None])
def test_the_header_stands_in_for_an_unusable_spacing_and_is_noted(tmp_path, z):
    path = gz(tmp_path / "a.nii.gz")
    converted = convert_volume(path, spacing_mm=(2.0, 2.0, z), recipe=RECIPE)
    assert converted.spacing_mm == (2.0, 2.0, 3.0)
    assert converted.spacing_note is not None


def test_no_usable_spacing_is_refused(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", make_noise((12, 11, 10)), spacing_mm=(2.0, 2.0, 0.01))
    assert reason_of_refusal(path) == "bad_spacing"
    assert reason_of_refusal(path, spacing_mm=(2.0, 2.0, None)) == "bad_spacing"
    assert reason_of_refusal(gz(tmp_path / "b.nii.gz"), spacing_mm=(0.7, 0.7, None)) == "bad_spacing", (
        "the header is another's"
    )


def test_the_headers_transforms_and_a_blank_scaling_change_nothing(tmp_path):
    path = gz(tmp_path / "a.nii.gz")
    expected = convert_volume(path, recipe=RECIPE).voxels
    block = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<2h", block, 252, 1, 2)  # qform and sform, which disagree
    struct.pack_into("<12f", block, 280, *[-9.0, 0, 0, 5, 0, 9.0, 0, 5, 0, 0, 9.0, 5])
    for slope, intercept in ((np.nan, np.nan), (0.0, 7.0), (1.0, 0.0)):
        struct.pack_into("<2f", block, 112, slope, intercept)
        path.write_bytes(gzip.compress(block))
        assert np.array_equal(convert_volume(path, recipe=RECIPE).voxels, expected)


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ((12, 11, 10), None),
        ((None, None, None), None),
        ((12, 11, None), None),
        ((512, 512, 10), None),  # a row of data_quality
        ((12, 11, 9), None),  # too
        ((12, 11, 20), "missing_slices"),
        ((None, None, 11), "missing_slices"),
        ((11, 12, 10), "wrong_axes"),
        ((10, 11, 12), "wrong_axes"),
        ((10, 11, 24), "wrong_axes"),
        ((10, 12, 11), "wrong_axes"),
    ],
)
def test_the_shape_of_the_table_is_compared(tmp_path, stated, reason):
    path = save_nifti(tmp_path / "a.nii.gz", make_noise((12, 11, 10)))
    if reason is None:
        assert convert_volume(path, recipe=RECIPE, stated_shape=stated).shape_in == (12, 11, 10)
    else:
        assert reason_of_refusal(path, stated_shape=stated) == reason
