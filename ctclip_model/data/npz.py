"""Reads a volume of RAD-ChestCT: a `.npz` whose array `ct` holds HU at 0.8 mm, axes z, y, x."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from ctclip_model.data.nifti import LARGEST_RATIO, NiftiHeader, fault
from ctclip_model.data.npz_axes import ORIENTATION, SPACING_MM, parse_orientation

MEMBER = "ct.npy"
LARGEST_BYTES = 2**31  # memory for one array; the data set's arrays have about 400 x 400 x 400 voxels


class NpzStream:
    """An open volume, read plane by plane as `NiftiStream` reads a NIfTI. Every fault of the file is a `VolumeError`.

    `orientation` names the array axes that become the volume's first, second and third axis. A capital letter reverses
    an axis.
    """

    def __init__(self, path: Path, orientation: str = ORIENTATION) -> None:
        self.path = path
        order, is_reversed = parse_orientation(orientation)
        voxels = self._read().transpose(order)
        self._voxels = voxels[tuple(slice(None, None, -1 if flip else 1) for flip in is_reversed)]
        self._position = 0
        first, second, third = self._voxels.shape
        self.header = NiftiHeader((first, second, third), SPACING_MM, voxels.dtype, 1.0, 0.0, data_offset=0)

    def __enter__(self) -> NpzStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def read_plane(self, out: np.ndarray) -> None:
        """Fills `out` with the next plane (second axis, first axis)."""
        out[:] = self._voxels[:, :, self._position].T
        self._position += 1

    def finish(self) -> None:
        """Does nothing: opening the file read all of it and verified its checksum."""

    def _read(self) -> np.ndarray:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(MEMBER) as member:
                info = archive.getinfo(MEMBER)
                if info.file_size > min(LARGEST_BYTES, LARGEST_RATIO * max(info.compress_size, 1)):
                    raise fault(self.path, "oversized_header", f"{MEMBER} claims {info.file_size} bytes")
                return self._read_array(member, info.file_size)
        except FileNotFoundError as error:
            raise fault(self.path, "missing_file", "there is no such file") from error
        except KeyError as error:
            raise fault(self.path, "not_npz", f"holds no {MEMBER}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            reason = "bad_crc" if "CRC" in str(error) or isinstance(error, zlib.error) else "not_npz"
            raise fault(self.path, reason, f"is not a complete zip archive: {error}") from error
        except (OSError, ValueError) as error:
            raise fault(self.path, "not_npz", f"{MEMBER} is not an array: {error}") from error

    def _read_array(self, member: IO[bytes], size_bytes: int) -> np.ndarray:
        major, _ = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(member)
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise fault(self.path, "bad_dtype", f"voxels are {dtype}, not plain numbers")
        if len(shape) != 3:
            raise fault(self.path, "not_3d", f"has shape {' x '.join(map(str, shape))}")
        if min(shape) < 2:
            raise fault(self.path, "too_few_slices", f"has shape {' x '.join(map(str, shape))}")
        if member.tell() + math.prod(shape) * dtype.itemsize != size_bytes:
            raise fault(self.path, "truncated", f"{MEMBER} has {size_bytes} bytes, not those of {shape} {dtype}")
        planes = np.empty(shape[::-1] if is_fortran else shape, dtype)
        for plane in planes:  # one by one: reading all at once would take twice the memory
            plane.reshape(-1).view(np.uint8)[:] = np.frombuffer(member.read(plane.nbytes), np.uint8)
        member.read()  # the end of the member, where zipfile verifies the checksum
        return planes.T if is_fortran else planes
