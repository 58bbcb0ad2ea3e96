"""Reads a NIfTI file once, front to back: header, planes, then the check that the file ends after the last plane."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from ctclip_model.data.accelerators import GZIP_MAGIC, StreamError, gzip_member
from ctclip_model.data.file_kinds import LONGEST, describe_file
from ctclip_model.data.orientation import orientation_of
from ctclip_model.data.spacing import HeaderSpacing
from ctclip_model.errors import VolumeError

CHUNK_BYTES = 2**14  # bytes read at once; inflated, they still fit a core's cache when they are copied
LARGEST_RATIO = 1032  # highest compression ratio of deflate
LARGEST_PLANE = 4096 * 4096  # voxels; two planes must fit into memory
LENGTH_UNITS = {1: "m", 2: "mm", 3: "µm"}  # keys: the low bits of xyzt_units
HEADERS = {
    348: (nib.Nifti1Header, 344, b"n+1\0"),
    540: (nib.Nifti2Header, 4, b"n+2\0"),
}  # length: class, mark and place


def fault(path: Path, reason: str, detail: str) -> VolumeError:
    """An error about a file, named as the volume is."""
    return VolumeError(re.sub(r"(\.nii|\.nii\.gz|\.npz)$", "", path.name), reason, detail)


@dataclass(frozen=True)
class NiftiHeader:
    """Content that a file's header claims. A voxel's value, HU or not, is slope x stored value + intercept."""

    shape: tuple[int, int, int]
    pixdim: tuple[float, float, float]  # as it stands in the header
    dtype: np.dtype
    slope: float
    intercept: float
    data_offset: int  # bytes
    affine: np.ndarray | None = None  # (4, 4), voxel indices towards right, anterior, superior; None: not coded
    other_affine: np.ndarray | None = None  # the qform's, if the one above is the sform's
    unit: str = "mm"  # unit of pixdim and of the affine

    @property
    def spacing(self) -> HeaderSpacing:
        """All that the header states of the spacing."""
        return HeaderSpacing(self.pixdim, self.affine, self.unit)

    def with_shape(self, shape: tuple[int, int, int]) -> NiftiHeader:
        """The header of the same voxels in another order of the axes."""
        return replace(self, shape=shape)

    @property
    def size_bytes(self) -> int:
        return self.data_offset + math.prod(self.shape) * self.dtype.itemsize


class NiftiStream:
    """An open `.nii` or `.nii.gz` file, read plane by plane along its third axis.

    The content, not the name, decides if it is gzip. Memory holds little more than one plane. `raw_header` is nibabel's
    view of the header. Every fault of the file raises `VolumeError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            what = "is a folder" if path.is_dir() else "is not a regular file"
            raise fault(path, "missing_file", what)
        try:
            self._file = path.open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise fault(path, "missing_file", "there is no such file") from error
        try:
            self._bytes = _ByteStream(path, self._file)
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> NiftiStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read_plane(self, out: np.ndarray) -> None:
        """Fills `out` with the stored values of the next plane (second axis, first axis), the order of the file."""
        self._bytes.fill(out.reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        """Reads to the end, which verifies the checksum. Raises `VolumeError` for bytes after the last plane."""
        surplus = self._bytes.drain()
        if surplus:
            raise fault(self.path, "trailing_data", f"holds {surplus} bytes more than its header says")

    def _read_header(self) -> NiftiHeader:
        head = self._bytes.peek(LONGEST)
        size = next((size for size, (_, place, mark) in HEADERS.items() if head[place : place + 4] == mark), None)
        if size is None or len(self._bytes.peek(size)) < size:
            raise fault(self.path, "not_nifti", describe_file(head, self.path.name, is_unpacked=self._bytes.is_gzip))
        self.raw_header = HEADERS[size][0](self._bytes.peek(size), check=False)
        header = _parse_header(self.path, self.raw_header)
        limit = self._bytes.size * (LARGEST_RATIO if self._bytes.is_gzip else 1)
        if header.size_bytes > limit:
            reason = "oversized_header" if self._bytes.is_gzip else "truncated"
            raise fault(self.path, reason, f"header promises {header.size_bytes} bytes, the file holds {limit} at most")
        if header.shape[0] * header.shape[1] > LARGEST_PLANE:
            raise fault(self.path, "oversized_header", f"planes of {header.shape[0]} x {header.shape[1]} voxels")
        self._bytes.skip(header.data_offset)
        return header


class _ByteStream:
    """The bytes of a file, inflated if it is gzip."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.is_gzip = file.read(2) == GZIP_MAGIC
        file.seek(0)
        chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
        self._chunks = self._inflate(chunks) if self.is_gzip else chunks
        self._rest = memoryview(b"")

    def fill(self, target: memoryview) -> None:
        """Fills all of `target` with the next bytes. Raises `VolumeError` if the file ends before."""
        filled = 0
        while filled < len(target):
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
            if not self._rest:
                reason = "oversized_header" if self.is_gzip else "truncated"
                raise fault(self.path, reason, f"ends {len(target) - filled} bytes or more before its header says")
            taken = self._rest[: len(target) - filled]
            target[filled : filled + len(taken)] = taken
            self._rest = self._rest[len(taken) :]
            filled += len(taken)

    def peek(self, count: int) -> bytes:
        """The next bytes, fewer where the file ends, which stay to be read."""
        block = bytes(self._rest)
        while len(block) < count and (chunk := next(self._chunks, b"")):
            block += chunk
        self._rest = memoryview(block)
        return block[:count]

    def skip(self, count: int) -> None:
        while count > 0:
            self.fill(memoryview(bytearray(min(count, CHUNK_BYTES))))
            count -= CHUNK_BYTES

    def drain(self) -> int:
        """Reads all bytes that are left and returns their number. Zero bytes that fill a block count as none."""
        surplus, is_filling = 0, True
        for chunk in itertools.chain([bytes(self._rest)], self._chunks):
            surplus += len(chunk)
            is_filling = is_filling and not chunk.strip(b"\0")
        return 0 if is_filling else surplus

    def _inflate(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The content of a gzip file. zlib verifies the CRC and length of each of its members.

        A file is one member or several, one after the other (RFC 1952). A chunk may end within a member, or hold the
        end of one member and the begin of the next. Zero bytes may follow, with which tapes and disks fill blocks.
        """
        member, padded = gzip_member(), False
        for chunk in chunks:
            while chunk:
                if member.eof:
                    if not chunk.strip(b"\0"):
                        padded = True
                        break
                    if padded or not chunk.startswith(GZIP_MAGIC[: len(chunk)]):
                        raise fault(self.path, "trailing_data", "other bytes follow the gzip stream")
                    member = gzip_member()
                try:
                    data = member.decompress(chunk)
                except StreamError as error:
                    raise fault(self.path, "bad_crc", f"the gzip stream is damaged: {error}") from error
                if data:
                    yield data
                chunk = member.unused_data
        if not member.eof:
            raise fault(self.path, "truncated", f"the gzip stream breaks off after {self.size} bytes")


def _parse_header(path: Path, header: nib.Nifti1Header) -> NiftiHeader:
    size = int(header.sizeof_hdr)
    shape = _shape(path, header)
    try:
        dtype = header.get_data_dtype()
    except (KeyError, HeaderDataError) as error:
        raise fault(path, "bad_dtype", f"NIfTI has no voxel type {int(header['datatype'])}") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise fault(path, "bad_dtype", f"voxels are {dtype}, not plain numbers")
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise fault(path, "bad_rescale", str(error)) from error
    offset = float(header["vox_offset"])
    if not size + 4 <= offset < 2**62:
        raise fault(path, "not_nifti", f"voxels cannot begin at byte {offset:g}")
    affines = list(_list_affines(header))
    first, second, third = (float(zoom) for zoom in header["pixdim"][1:4])
    return NiftiHeader(
        shape=shape,
        pixdim=(first, second, third),
        dtype=dtype,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        data_offset=int(offset),
        affine=affines[0] if affines else None,
        other_affine=affines[1] if len(affines) > 1 else None,
        unit=LENGTH_UNITS.get(int(header["xyzt_units"]) & 7, "mm"),
    )


def _list_affines(header: nib.Nifti1Header) -> Iterator[np.ndarray]:
    """The affines of the sform and of the qform, in this order, where they are coded and usable."""
    if header["sform_code"] > 0 and orientation_of(header.get_sform()):
        yield np.asarray(header.get_sform())
    with suppress(HeaderDataError, ValueError), np.errstate(all="ignore"):  # an impossible quaternion
        affine = header.get_qform(coded=True)[0]
        if affine is not None and orientation_of(affine):
            yield np.asarray(affine)


def _shape(path: Path, header: nib.Nifti1Header) -> tuple[int, int, int]:
    count = int(header["dim"][0])
    sides = [int(side) for side in header["dim"][1 : count + 1]]
    sides[3:] = [side or 1 for side in sides[3:]]  # some writers leave the length of a missing axis at 0
    if not 1 <= count <= 7 or min(sides) < 1:
        raise fault(path, "not_nifti", f"dimensions {header['dim'].tolist()}")
    if count < 3 or max(sides[3:], default=1) > 1:
        raise fault(path, "not_3d", f"has shape {' x '.join(map(str, sides))}")
    if min(sides[:3]) < 2:
        raise fault(path, "too_few_slices", f"has shape {' x '.join(map(str, sides))}")
    return sides[0], sides[1], sides[2]
