"""Shards: our reader and that of the documentation return the written volumes, and damage is always found."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.paths import ROOT
from support.volumes import RECIPE, make_shard_volume

from ctclip_model.config import Recipe
from ctclip_model.data import shards
from ctclip_model.data.shards import ShardReader, ShardVolume, read_volume, write_shard
from ctclip_model.errors import ShardError

DOCUMENT = ROOT / "docs" / "shards.md"


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch):
    monkeypatch.setattr(shards, "SLAB_VOXELS", 4 * 16 * 12)  # slabs of 4, 4 and 2 planes


def volume(index: int) -> ShardVolume:
    """Random HU. Differences of every second volume's wrap around."""
    low, high = (-32768, 32767) if index % 2 else (-1000, 1000)
    voxels = np.random.default_rng(index).integers(low, high, RECIPE.shape, endpoint=True).astype(np.int16)
    return make_shard_volume(f"train_{index + 1}_a_1", voxels=voxels, window=((0, 10), (1, 7), (2, 5)))


VOLUMES = [volume(index) for index in range(5)]


@pytest.fixture(params=["delta-zstd", "raw"])
def path(request, tmp_path) -> Path:
    path = tmp_path / "shards" / "a.arrow"
    write_shard(path, RECIPE, VOLUMES, encoding=request.param, code_version="abc")
    return path


def test_every_volume_comes_back_as_it_was(path):
    out = np.empty(RECIPE.shape, np.int16)
    with ShardReader(path, verify=True) as reader:
        assert len(reader) == 5
        assert reader.names == [volume.name for volume in VOLUMES]
        assert (reader.recipe, reader.recipe_id, reader.code_version) == (RECIPE, RECIPE.recipe_id, "abc")
        for row, volume in enumerate(VOLUMES):
            assert np.array_equal(reader.read(row), volume.converted.voxels)
            assert reader.read(row, out) is out
            assert np.array_equal(out, volume.converted.voxels)
    assert np.array_equal(read_volume(path, 3), VOLUMES[3].converted.voxels)


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (0, 1), (3, 5), (4, 8), (5, 6), (9, 10), (1, 10)])
def test_a_slab_is_a_part_of_its_volume(path, start, stop):
    with ShardReader(path) as reader:
        assert np.array_equal(reader.read_slab(1, start, stop), VOLUMES[1].converted.voxels[start:stop])


WHOLE = ((0, 10), (0, 16), (0, 12))
BOXES = [WHOLE, ((3, 5), (2, 6), (1, 2)), ((4, 8), (0, 8), (3, 7)), ((9, 10), (7, 8), (6, 7))]
BAD_BOXES = [((0, 11), *WHOLE[1:]), ((-1, 5), *WHOLE[1:]), ((0, 1), (3, 3), (0, 7)), ((0, 1), (0, 8), (5, 2))]


@pytest.mark.parametrize("box", BOXES)
def test_a_box_is_a_part_of_its_volume(path, box):
    expected = VOLUMES[1].converted.voxels[tuple(slice(*bounds) for bounds in box)]
    out = np.empty(expected.shape, np.int16)
    with ShardReader(path) as reader:
        assert np.array_equal(reader.read_box(1, box), expected)
        assert reader.read_box(1, box, out) is out
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("box", BAD_BOXES)
def test_a_box_that_is_not_inside_is_refused(path, box):
    with ShardReader(path) as reader, pytest.raises(ValueError, match=r"\(10, 16, 12\)"):
        reader.read_box(1, box)


def test_rows_written_are_rows_read(tmp_path):
    rows = write_shard(tmp_path / "a.arrow", RECIPE, VOLUMES)
    assert [row.row_index for row in rows] == [0, 1, 2, 3, 4]
    assert rows[2].crc32 == zlib.crc32(VOLUMES[2].converted.voxels.tobytes())
    assert rows[2].window_start == (0, 1, 2)
    assert rows[2].shape_in == (50, 60, 70)
    with ShardReader(tmp_path / "a.arrow") as reader:
        assert [reader.row(index) for index in range(5)] == rows


def test_the_documented_reader_reads_a_shard(tmp_path):
    path = tmp_path / "a.arrow"
    write_shard(path, RECIPE, VOLUMES)
    snippets = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(snippets) == 1
    for row, volume in enumerate(VOLUMES):
        names = {"path": str(path), "row": row}
        exec(snippets[0], names)
        assert names["voxels"].dtype == np.int16
        assert np.array_equal(names["voxels"], volume.converted.voxels)
        assert names["volume"]["crc32"] == zlib.crc32(names["voxels"])


def test_the_document_names_every_column_and_key(path):
    schema = pa.ipc.open_file(pa.memory_map(str(path))).schema
    text = DOCUMENT.read_text()
    for name in [*schema.names, *(key.decode() for key in schema.metadata)]:
        assert f"`{name}`" in text, name


def test_what_fails_midway_leaves_no_file(tmp_path):
    def failing() -> Iterator[ShardVolume]:
        yield VOLUMES[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "a.arrow", RECIPE, failing())
    assert list(tmp_path.iterdir()) == []


def test_no_volumes_make_no_file(tmp_path):
    assert write_shard(tmp_path / "a.arrow", RECIPE, []) == []
    assert list(tmp_path.iterdir()) == []


def test_volumes_are_taken_one_by_one(tmp_path):
    written = []

    def watched() -> Iterator[ShardVolume]:
        for volume in VOLUMES:
            written.append([path.name.partition(".arrow")[0] for path in tmp_path.iterdir()])
            yield volume

    write_shard(tmp_path / "a.arrow", RECIPE, watched())
    assert written == [[], *[[".a"]] * 4]  # drawn while the shard is being written, except the first
    assert not list(tmp_path.glob(".*"))


def test_a_volume_of_another_shape_or_type_is_refused(tmp_path):
    other = Recipe("other", shape=(10, 16, 13))
    with pytest.raises(ShardError, match=r"train_1_a_1.*\(10, 16, 12\)"):
        write_shard(tmp_path / "a.arrow", other, VOLUMES)


def test_a_file_that_is_no_whole_shard_is_refused(tmp_path, path):
    content = path.read_bytes()
    bad = tmp_path / "bad.arrow"
    for part in (b"", b"hello", content[:-1], content[: len(content) // 2]):
        bad.write_bytes(part)
        with pytest.raises(ShardError, match=r"bad\.arrow"):
            ShardReader(bad)
    with pytest.raises(ShardError, match=r"missing\.arrow"):
        ShardReader(tmp_path / "missing.arrow")
    with pa.ipc.new_file(str(bad), pa.schema([("name", pa.string())])):
        pass
    with pytest.raises(ShardError, match="version"):
        ShardReader(bad)


def test_a_row_that_is_not_there_is_refused(path):
    with ShardReader(path) as reader:
        for row in (-1, 5):
            with pytest.raises(ShardError, match="no row"):
                reader.read(row)


def test_damage_is_noticed_by_the_checksum(tmp_path):
    path = tmp_path / "a.arrow"
    write_shard(path, RECIPE, VOLUMES, encoding="raw")
    content = bytearray(path.read_bytes())
    position = content.find(VOLUMES[2].converted.voxels[0].tobytes())
    content[position + 5] ^= 1
    path.write_bytes(content)
    assert not np.array_equal(read_volume(path, 2), VOLUMES[2].converted.voxels)
    with pytest.raises(ShardError, match="checksum"):
        read_volume(path, 2, verify=True)
    assert np.array_equal(read_volume(path, 1, verify=True), VOLUMES[1].converted.voxels)


def test_damage_anywhere_is_an_error_or_harmless(path):
    content = path.read_bytes()
    for position in range(8, len(content), 181):
        block = bytearray(content)
        block[position] ^= 0xFF
        path.write_bytes(block)
        try:
            with ShardReader(path, verify=True) as reader:
                for row, volume in enumerate(VOLUMES[: len(reader)]):
                    assert np.array_equal(reader.read(row), volume.converted.voxels)
        except ShardError:
            pass
