"""Optional accelerators of conversion and reading: `isal` in place of zlib, `numba` in place of numpy.

Results are the same without them. ISA-L inflates in half of zlib's time.
"""

from __future__ import annotations

import functools
import zlib
from types import ModuleType
from typing import Any

try:
    from isal import isal_zlib
except ImportError:
    library: Any = zlib
    StreamError: Any = zlib.error
    DEFLATE_LEVEL = 1
else:
    library = isal_zlib
    StreamError = isal_zlib.error
    DEFLATE_LEVEL = 2  # the fastest of ISA-L's levels on repeated values, and among the smallest

GZIP_MAGIC = b"\x1f\x8b"


def gzip_member() -> Any:
    """A decompressor of one gzip member, like `zlib.decompressobj`. It raises `StreamError`, also for a wrong CRC."""
    return library.decompressobj(wbits=31)


def deflate(data: Any) -> bytes:
    """Compresses a buffer to raw deflate blocks that end at a byte and refer to no other data, quickly."""
    compressor = library.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return bytes(compressor.compress(data) + compressor.flush(zlib.Z_FULL_FLUSH))


def crc32(data: Any, start: int = 0) -> int:
    """The CRC-32 of a buffer that follows data of the CRC-32 `start`."""
    return int(library.crc32(data, start))


@functools.cache
def load_kernels() -> ModuleType | None:
    """The compiled loops of `kernels.py`, or None without numba. Imported on first use: it takes half a second."""
    try:
        from ctclip_model.data import kernels
    except ImportError:
        return None
    return kernels
