"""More than a thousand damaged files: each is refused with a reason, or read as another reader reads it.

None of them hangs: a conversion takes a bounded number of steps, whatever its file claims.
"""

from __future__ import annotations

import gzip
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.volumes import RECIPE, convert_plainly, make_noise, save_nifti

from ctclip_model.data import nifti
from ctclip_model.data.accelerators import gzip_member
from ctclip_model.data.volume import convert_volume
from ctclip_model.errors import VolumeError

SPACING = (2.0, 2.0, 3.0)
SHAPE = (9, 8, 10)
REASONS = {
    "all_zero", "bad_crc", "bad_dtype", "bad_rescale", "bad_spacing", "constant", "nan_voxels", "not_3d", "not_nifti",
    "not_rescaled", "oversized_header", "rescaled_twice", "too_few_slices", "trailing_data", "truncated",
}  # fmt: skip
FIELDS = {  # offset and format of the header's fields that reading depends on
    "sizeof_hdr": (0, "<i"), "dim": (40, "<8h"), "datatype": (70, "<h"), "bitpix": (72, "<h"), "pixdim": (76, "<8f"),
    "vox_offset": (108, "<f"), "scl_slope": (112, "<f"), "scl_inter": (116, "<f"), "qform_code": (252, "<h"),
    "sform_code": (254, "<h"), "magic": (344, "<i"),
}  # fmt: skip
NUMBERS = {
    "h": st.one_of(st.integers(-2, 12), st.integers(-(2**15), 2**15 - 1)),
    "i": st.integers(-(2**31), 2**31 - 1),
    "f": st.one_of(st.floats(width=32), st.sampled_from([0.0, 1.0, 348.0, 352.0, 368.0, float("nan"), float("inf")])),
}
MOST_STEPS = 10_000  # reads and inflations of a conversion; a file of 2 kB takes fewer than 50
thorough = settings(
    max_examples=600, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> bytes:
    return save_nifti(tmp_path_factory.mktemp("plain") / "a.nii", make_noise(SHAPE)).read_bytes()


class Steps:
    """Counts calls of a function, and fails beyond the bound."""

    def __init__(self) -> None:
        self.count = 0

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.count += 1
            if self.count > MOST_STEPS:
                pytest.fail(f"more than {MOST_STEPS} steps: the conversion hangs")
            return function(*arguments)

        return call


STEPS = Steps()


@pytest.fixture(scope="module", autouse=True)
def _counted_steps() -> Iterator[None]:
    """Counts each read of a stream, and each inflation of a chunk."""

    class CountedMember:
        def __init__(self) -> None:
            self.member = gzip_member()
            self.decompress = STEPS.counted(self.member.decompress)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.member, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nifti, "gzip_member", CountedMember)
        patch.setattr(nifti._ByteStream, "fill", STEPS.counted(nifti._ByteStream.fill))
        yield


def convert(path: Path) -> np.ndarray | None:
    """The volume, int16 HU, or None for a refused file."""
    STEPS.count = 0
    try:
        return convert_volume(path, spacing_mm=SPACING, recipe=RECIPE).voxels
    except VolumeError as error:
        reason = error.reason
    assert reason in REASONS
    return None


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes changed, cut out, doubled, or put in."""
    block = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(block) - 1, 0)))
        stop = draw(st.integers(start, min(start + 40, len(block))))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "double", "truncate", "append"]))
        if kind == "flip" and start < len(block):
            block[start] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del block[start:stop]
        elif kind == "insert":
            block[start:start] = draw(st.binary(max_size=20))
        elif kind == "double":
            block[start:start] = block[start:stop]
        elif kind == "truncate":
            del block[start:]
        elif kind == "append":
            block += draw(st.one_of(st.binary(max_size=20), st.just(content), st.just(bytes(8))))
    return bytes(block)


@given(data=st.data())
@thorough
def test_a_damaged_stream_is_refused_or_harmless(tmp_path, plain, data):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(plain, mtime=0))
    undamaged = convert(path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    voxels = convert(path)
    assert voxels is None or np.array_equal(voxels, undamaged)


@given(data=st.data())
@thorough
def test_a_damaged_header_is_refused_or_read_as_another_reader_reads_it(tmp_path, plain, data):
    block = bytearray(plain)
    for name in data.draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=3)):
        offset, form = FIELDS[name]
        count, kind = int(form[1:-1] or 1), form[-1]
        index = offset + struct.calcsize(kind) * data.draw(st.integers(0, count - 1))
        struct.pack_into(f"<{kind}", block, index, data.draw(NUMBERS[kind]))
    for _ in range(data.draw(st.integers(0, 2))):
        block[data.draw(st.integers(0, 351))] = data.draw(st.integers(0, 255))
    is_gzip = data.draw(st.booleans())
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(block), mtime=0) if is_gzip else bytes(block))
    voxels = convert(path)
    if voxels is not None:
        assert np.abs(voxels / 1000 - convert_plainly(read_otherwise(bytes(block)), SPACING, RECIPE)).max() < 6e-4


def read_otherwise(content: bytes) -> np.ndarray:
    """HU by nibabel alone. A fourth axis of length 0 is left out, as ITK reads it."""
    kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
    length = kind.header_class.template_dtype.itemsize
    header = kind.header_class(content[:length], check=False)
    header["dim"][4:] = np.maximum(header["dim"][4:], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hu = kind.from_stream(io.BytesIO(header.binaryblock + content[length:])).get_fdata()
    return hu.reshape(hu.shape[:3])
