"""A file that is no NIfTI is named, with the remedy."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib

import pytest
from support.volumes import make_noise, save_nifti

from ctclip_model.data.volume import read_volume
from ctclip_model.errors import VolumeError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><title>Log in</title></html>", "web page"),
        (b"<html><body>403</body></html>", "web page"),
        (b"<!-- saved -->\n<html></html>", "web page"),
        (b"<Error><Code>AccessDenied</Code></Error>", "XML"),
        (b'{"error": "Access to dataset is restricted"}', "JSON"),
        (b'[{"error": "Access to dataset is restricted"}]', "JSON"),
        (b"Access to dataset is restricted.", "is a text"),
        (b"ObjectType = Image\nNDims = 3\n", "MetaImage"),
        (b"NRRD0004\ntype: short\n", "NRRD"),
        (bytes(128) + b"DICM" + bytes(300), "DICOM"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd"),
        (bz2.compress(bytes(400)), "bzip2"),
        (lzma.compress(bytes(400)), "xz"),
        (b"\x04\x22\x4d\x18" + bytes(100), "lz4"),
        (b"\x1f\x9d\x90" + bytes(100), "compress"),
        (zlib.compress(bytes(400)), "zlib"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (b"Rar!\x1a\x07\x01" + bytes(100), "RAR archive"),
        (bytes(257) + b"ustar" + bytes(250), "tar archive"),
        (gzip.compress(bytes(257) + b"ustar" + bytes(250), mtime=0), "tar archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"CDF\x01" + bytes(100), "netCDF"),
        (gzip.compress((1).to_bytes(4, "big") + bytes(400), mtime=0), "MGH"),
        (b"\x93NUMPY" + bytes(100), "NumPy"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"II*\0", "TIFF"),
        (bytes(344) + b"ni1\0" + bytes(200), ".hdr/.img pair"),
        (bytes(4) + b"ni2\0" + bytes(540), ".hdr/.img pair"),
        ((348).to_bytes(4, "little") + bytes(400), "Analyze"),
        ((348).to_bytes(4, "big") + bytes(100), "too short"),
        ((540).to_bytes(4, "little") + b"n+2\0" + bytes(400), "too short"),
        (gzip.compress(gzip.compress(bytes(400), mtime=0), mtime=0), "compressed twice"),
        (bytes(3), "does not begin with a NIfTI header"),
        (bytes(400), "does not begin with a NIfTI header"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, words):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert caught.value.reason == "not_nifti"
    assert words in str(caught.value)


def test_the_voxels_of_a_pair_are_named_by_their_file_name(tmp_path):
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1000))
    with pytest.raises(VolumeError, match=r"\.hdr/\.img pair"):
        read_volume(path)


def test_a_folder_is_named(tmp_path):
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(VolumeError, match="is a folder"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_header_of_a_pair_is_named(tmp_path):
    path = save_nifti(tmp_path / "a.nii", make_noise((12, 11, 10)))
    block = bytearray(path.read_bytes())
    block[344:348] = b"ni1\0"
    path.write_bytes(block)
    with pytest.raises(VolumeError, match="pair"):
        read_volume(path)


@pytest.mark.parametrize("padding", [1, 512, 70_000])
def test_zero_bytes_behind_a_gzip_stream_are_padding(tmp_path, padding):
    path = save_nifti(tmp_path / "a.nii.gz", make_noise((12, 11, 10)))
    expected = read_volume(path).voxels
    path.write_bytes(path.read_bytes() + bytes(padding))
    assert (read_volume(path).voxels == expected).all()


@pytest.mark.parametrize("padding", [1, 512, 70_000])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_zero_bytes_behind_the_voxels_are_padding_and_others_are_damage(tmp_path, padding, is_compressed):
    path = save_nifti(tmp_path / "a.nii", make_noise((12, 11, 10)))
    expected = read_volume(path).voxels
    content = path.read_bytes() + bytes(padding)
    path.write_bytes(gzip.compress(content) if is_compressed else content)
    assert (read_volume(path).voxels == expected).all()
    content += b"x"
    path.write_bytes(gzip.compress(content) if is_compressed else content)
    with pytest.raises(VolumeError, match="trailing_data"):
        read_volume(path)


def test_a_header_that_misstates_its_own_length_is_read_by_its_mark(tmp_path):
    path = save_nifti(tmp_path / "a.nii", make_noise((12, 11, 10)))
    expected = read_volume(path).voxels
    path.write_bytes(bytes(4) + path.read_bytes()[4:])
    assert (read_volume(path).voxels == expected).all()


def test_other_bytes_behind_a_gzip_stream_are_damage(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", make_noise((12, 11, 10)))
    path.write_bytes(path.read_bytes() + bytes(600) + b"x")
    with pytest.raises(VolumeError, match="trailing_data"):
        read_volume(path)


def test_a_missing_fourth_axis_may_have_length_zero(tmp_path):
    path = save_nifti(tmp_path / "a.nii", make_noise((12, 11, 10)))
    expected = read_volume(path).voxels
    block = bytearray(path.read_bytes())
    block[40:42] = (4).to_bytes(2, "little")
    block[48:50] = (0).to_bytes(2, "little")
    path.write_bytes(block)
    assert (read_volume(path).voxels == expected).all()
