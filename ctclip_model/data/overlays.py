"""Maps of a model's patches as NIfTI overlays on a CT's own voxel grid.

A map is constant within a patch, so neighbouring planes are equal. Each distinct plane is compressed once, and its
bytes are repeated in the gzip stream. An overlay of 300 slices of 512 x 512 voxels takes some hundredths of a second.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import Recipe
from ctclip_model.data.accelerators import crc32, deflate
from ctclip_model.data.dicom import DicomSeries
from ctclip_model.data.names import STORED
from ctclip_model.data.nifti import NiftiStream
from ctclip_model.data.orientation import turn_to_lps
from ctclip_model.data.resampling import locate_voxels
from ctclip_model.data.volume import ConvertedVolume
from ctclip_model.files import whole_file

# Fields of a NIfTI header that place the array in space. Texts are left out: they may name a patient.
GEOMETRY = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
GRID_AXES = (1, 2, 0)  # axis of (depth, height, width) that runs to the left, to posterior, to superior
GZIP_HEAD = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
LAST_BLOCK = b"\x03\x00"  # an empty last block of deflate
LARGEST = np.iinfo(np.int16).max
OUTSIDE = -1


@dataclass(frozen=True)
class PatchGrid:
    """The patch of each voxel of a CT, by the array axes of its file.

    `grid` is the number of patches along depth, height, width. `axes[a]` is the axis of that grid which lies along
    array axis a, and `indices[a]` the patch of each voxel along it, or -1 outside the model's field.
    """

    grid: tuple[int, int, int]
    axes: tuple[int, int, int]
    indices: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels by array axis."""
        first, second, third = (len(along) for along in self.indices)
        return first, second, third

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """Patches (depth, height, width) that hold a voxel of the CT. The others are padding."""
        along = dict(zip(self.axes, self.indices, strict=True))
        depth, height, width = (np.isin(np.arange(size), along[axis]) for axis, size in enumerate(self.grid))
        return depth[:, None, None] & height[:, None] & width

    def turn(self, patches: NDArray) -> NDArray:
        """A map (depth, height, width) in the order of the array axes."""
        return patches.transpose(self.axes)

    def centre(self, patch: Sequence[int]) -> tuple[int, int, int]:
        """Voxel of the file's array in the middle of a patch (depth, height, width) that lies inside."""
        voxels = [np.flatnonzero(along == patch[axis]) for axis, along in zip(self.axes, self.indices, strict=True)]
        first, second, third = (int(found[len(found) // 2]) for found in voxels)
        return first, second, third


def place_patches(volume: ConvertedVolume, recipe: Recipe, grid: tuple[int, int, int]) -> PatchGrid:
    """The patches of a model's `grid` (depth, height, width) on the array of the file that `volume` was read from."""
    turn = turn_to_lps(volume.turned_from or STORED)
    found = []
    for axis, array_axis in enumerate(turn.axes):
        along = GRID_AXES[axis]
        window = recipe.shape[along]
        size, spacing_mm = volume.shape_in[array_axis], volume.spacing_mm[array_axis]
        places = locate_voxels(size, spacing_mm, recipe.spacing_mm[along], window) + 0.5
        patches = np.floor(places * grid[along] / window).astype(np.intp)
        patches[(places < 0) | (places >= window)] = OUTSIDE
        found.append(patches[::-1] if turn.flips[axis] else patches)
    return PatchGrid(grid, turn.restore(GRID_AXES), turn.restore(found))


def make_header(source: Path | DicomSeries, shape: tuple[int, int, int]) -> nib.Nifti1Header:
    """The header of int16 overlays that lie where a NIfTI file or a DICOM series lies. Raises `VolumeError`."""
    if isinstance(source, DicomSeries):
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_sform(source.affine, "scanner")
        header.set_qform(source.affine, "scanner")
        header.set_xyzt_units("mm")
    else:
        with NiftiStream(source) as stream:
            given = stream.raw_header
        header = type(given)()
        for field in GEOMETRY:
            header[field] = given[field]
        header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header["vox_offset"] = header.sizeof_hdr + 4
    return header


def write_overlay(path: Path, header: nib.Nifti1Header, patches: NDArray, grid: PatchGrid, name: str) -> None:
    """Writes a map (depth, height, width) as a `.nii.gz` with one value for each voxel of the CT, and 0 outside.

    Values are rounded to 1/32767 of the largest. `name` is the header's description.
    """
    largest = float(np.abs(patches[grid.inside]).max(initial=0))
    header = header.copy()
    header.set_slope_inter(largest / LARGEST or 1.0, 0)
    header["descrip"] = name.encode()[:79]
    header["cal_max"], header["cal_min"] = largest, -largest
    levels = np.rint(grid.turn(patches) / (largest / LARGEST or 1.0))
    levels = np.pad(levels.clip(-LARGEST, LARGEST), (0, 1)).astype("<i2")  # the last one, at -1, is 0
    first, second, third = grid.indices
    order = third.tolist()
    rows = levels.T.take(first, axis=2)  # (third patch, second patch, first voxel); rows are then copied whole
    planes = {patch: memoryview(rows[patch].take(second, axis=0).ravel()).cast("B") for patch in set(order)}
    with whole_file(path) as file:
        _write_gzip(file, header.binaryblock + bytes(4), planes, order)


def _write_gzip(file: BinaryIO, head: bytes, planes: dict[int, memoryview], order: Sequence[int]) -> None:
    """Writes one gzip member of `head` and the planes in `order` (RFC 1952)."""
    packed = {key: (deflate(plane), crc32(plane)) for key, plane in planes.items()}
    size = len(planes[order[0]])
    basis = list(_shift_bits(size))
    file.write(GZIP_HEAD + deflate(head))
    check = crc32(head)
    for key in order:
        data, crc = packed[key]
        file.write(data)
        check = crc ^ _shift(check, basis)
    file.write(LAST_BLOCK + struct.pack("<II", check, (len(head) + size * len(order)) % 2**32))


def _shift_bits(size: int) -> Iterator[int]:
    """The CRC-32 that each bit of a CRC-32 becomes behind `size` more bytes. A CRC is linear in its bits."""
    zeros = bytes(size)
    nothing = crc32(zeros)
    for bit in range(32):
        yield crc32(zeros, 1 << bit) ^ nothing


def _shift(crc: int, basis: Sequence[int]) -> int:
    shifted = 0
    for bit, value in enumerate(basis):
        if crc >> bit & 1:
            shifted ^= value
    return shifted
