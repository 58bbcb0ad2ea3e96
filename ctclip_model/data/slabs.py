"""Slabs: a few planes of a volume as bytes, and back. docs/shards.md describes both encodings."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa

from ctclip_model.data.accelerators import load_kernels

Encoding = Literal["delta-zstd", "raw"]

VOXEL = np.dtype("<i2")
COLUMNS: dict[Encoding, tuple[str, ...]] = {"delta-zstd": ("low", "high"), "raw": ("voxels",)}  # columns of a shard
_ZSTD = pa.Codec("zstd", compression_level=1)


def encode_slab(planes: np.ndarray, encoding: Encoding) -> tuple[bytes | memoryview, ...]:
    """Encodes int16 planes (planes, height, width) as one piece of bytes for each of the encoding's columns."""
    if encoding == "raw":
        return (planes.reshape(-1).view(np.uint8).data,)
    pieces = np.empty((2, *planes.shape), np.uint8)
    kernels = load_kernels()
    if kernels:
        kernels.split_rows(planes, *pieces)
    else:
        delta = planes.copy()
        delta[:, 1:] -= planes[:, :-1]  # wraps around, and so does the sum on decoding
        words = ((delta << 1) ^ (delta >> 15)).view(np.uint16)  # 2d, or -2d - 1 if negative: high bytes are mostly 0
        pieces[0], pieces[1] = words & 0xFF, words >> 8
    return tuple(_ZSTD.compress(piece.reshape(-1), asbytes=True) for piece in pieces)


def decode_slab(pieces: list[pa.Buffer], out: np.ndarray) -> None:
    """Decodes pieces into `out`, int16 (planes, height, width). Raises `ValueError` or `ArrowException` for damage."""
    if len(pieces) == 1:
        out[:] = np.frombuffer(pieces[0], VOXEL).reshape(out.shape)
        return
    low, high = (np.frombuffer(_ZSTD.decompress(piece, out.size), np.uint8).reshape(out.shape) for piece in pieces)
    kernels = load_kernels()
    if kernels:
        kernels.join_rows(low, high, out)
        return
    planes, height, width = out.shape
    rows = np.empty((height, planes, width), np.uint16)  # rows first: the sum below runs along contiguous memory
    rows[:] = high.swapaxes(0, 1)
    np.left_shift(rows, 8, out=rows)
    np.bitwise_or(rows, low.swapaxes(0, 1), out=rows)
    sign = -(rows & 1)
    np.right_shift(rows, 1, out=rows)
    np.bitwise_xor(rows, sign, out=rows)
    for above, row in pairwise(rows):  # several times faster than np.cumsum, which goes voxel by voxel
        np.add(row, above, out=row)
    out[:] = rows.view(VOXEL).swapaxes(0, 1)
