"""Partly superseded shards: listed, rewritten on request, and deleted only when nothing reads them any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.records import write_run
from support.volumes import RECIPE, make_shard_volume

from ctclip_model.data.shards import ShardVolume, copy_volumes, read_volume, write_shard
from ctclip_model.errors import ShardError
from tasks.run.publish import publish
from tasks.run.stage_run import StageRun
from tasks.upkeep.garbage import collect_garbage
from warehouse.store import query

FOLDER = f"shards/{RECIPE.recipe_id}"


def volume(seed: int) -> ShardVolume:
    """One of two files of a volume: ten more is the other."""
    return make_shard_volume(f"train_{seed % 10}_a_1", seed=seed)


def write_converted(data_root: Path, run: int, seeds: list[int]) -> str:
    """Writes a shard of these volumes and records it."""
    path = f"{FOLDER}/{run}.arrow"
    rows = write_shard(data_root / path, RECIPE, [volume(seed) for seed in seeds])
    key = {"recipe_id": RECIPE.recipe_id, "shard_path": path}
    write_run(
        data_root, run,
        shards=[key | {"size_bytes": (data_root / path).stat().st_size, "count_volumes": len(rows)}],
        shard_volumes=[
            key | {"volume_name": row.name, "row_index": row.row_index, "fingerprint": str(seed), "shape_in": [5, 6, 7]}
            for row, seed in zip(rows, seeds, strict=True)
        ],
    )  # fmt: skip
    publish(data_root)
    return path


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Three shards: the first has one volume of four alive, the second two of three, the third all."""
    write_converted(tmp_path, 0, [1, 2, 3, 4])
    write_converted(tmp_path, 1, [5, 6, 7])
    write_converted(tmp_path, 2, [11, 12, 14, 16])
    return tmp_path


def current(data_root: Path) -> dict[str, tuple[str, int, str]]:
    rows = query(data_root, "select volume_name, shard_path, row_index, fingerprint from current_shard_volumes")
    return {name: (path, row, fingerprint) for name, path, row, fingerprint in rows}


def garbage(data_root: Path, **options: Any) -> list[str]:
    found = collect_garbage(data_root, **options).garbage
    return [str(one.path.relative_to(data_root)) for one in found]


def test_share_that_is_superseded_is_reported_and_nothing_is_written(data_root):
    before = sorted(data_root.glob("*/*/*"))
    thin = collect_garbage(data_root).thin
    assert [(one.shard_path, one.dead_share) for one in thin] == [
        (f"{FOLDER}/0.arrow", 0.75),
        (f"{FOLDER}/1.arrow", 1 / 3),
    ]
    assert sorted(data_root.glob("*/*/*")) == before


def test_mostly_dead_shard_is_rewritten_and_every_volume_is_read_as_before(data_root):
    before = current(data_root)
    assert collect_garbage(data_root, compact_shards=True).count_compacted == 1
    after = current(data_root)
    assert [name for name in after if after[name] != before[name]] == ["train_3_a_1"]
    for name, (path, row, fingerprint) in after.items():
        expected = volume(int(fingerprint)).converted.voxels
        assert np.array_equal(read_volume(data_root / path, row, verify=True), expected), name
    publish(data_root, from_scratch=True)
    assert current(data_root) == after
    assert garbage(data_root) == [f"{FOLDER}/0.arrow"]
    assert garbage(data_root, delete=True) == [f"{FOLDER}/0.arrow"]
    assert collect_garbage(data_root, compact_shards=True).count_compacted == 0


def test_shard_that_an_unfinished_training_reads_stays(data_root):
    work = data_root / "models/tiny-1.work"
    work.mkdir(parents=True)
    pq.write_table(pa.table({"shard_path": [f"{FOLDER}/0.arrow"]}), work / "manifest.parquet")
    collect_garbage(data_root, compact_shards=True)
    assert garbage(data_root, delete=True) == []
    write_run(data_root, 3, "train", models=[{"model_id": "tiny-1", "path": "models/tiny-1"}])
    assert garbage(data_root) == [f"{FOLDER}/0.arrow"]


def test_compaction_that_dies_between_its_records_leaves_what_was(data_root, monkeypatch):
    before, record = current(data_root), StageRun.record

    def die(run: StageRun, table: str, rows: Any) -> int:
        if table == "shard_volumes":
            raise KeyboardInterrupt
        return record(run, table, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageRun, "record", die)
        collect_garbage(data_root, compact_shards=True)
    assert current(data_root) == before
    assert len(garbage(data_root, delete=True)) == 1  # the new file
    assert collect_garbage(data_root, compact_shards=True).count_compacted == 1


def test_damaged_volume_is_not_copied(data_root, tmp_path):
    shard = data_root / FOLDER / "0.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(ShardError, match="damaged"):
        copy_volumes([(shard, row) for row in range(4)], tmp_path / "new.arrow")
    assert not list(tmp_path.glob("*new.arrow*"))


def test_latents_go_when_all_of_a_run_are_superseded_and_the_warehouse_can_be_remade(data_root):
    def embed(run: int, items: str) -> None:
        row = {"model_id": "m", "kind": "volume", "fingerprint": "f", "latent": [1.0, 0.0]}
        write_run(data_root, run, "embed", latents=[row | {"item": item} for item in items])

    embed(3, "ab")
    embed(4, "a")
    assert garbage(data_root) == []
    embed(5, "ab")
    kept = "select item, run_id from current_latents order by 1"
    assert [Path(path).parent.name for path in garbage(data_root, delete=True)] == ["latents"] * 2
    assert query(data_root, "select count(*), count(distinct run_id) from latents") == [(2, 1)]
    remade = query(data_root, kept)
    publish(data_root, from_scratch=True)
    assert query(data_root, kept) == remade
    assert garbage(data_root) == []
