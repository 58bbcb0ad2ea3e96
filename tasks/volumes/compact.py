"""Compacts shards: copies the current volumes of partly superseded shards into new ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.shards import ShardReader, copy_volumes
from tasks.run.stage_run import StageRun
from warehouse import store


@dataclass(frozen=True)
class ThinShard:
    """A shard with volumes that have a newer row elsewhere."""

    shard_path: str  # path below the data root
    recipe_id: str
    size_bytes: int
    count_volumes: int
    count_dead: int  # volumes with a newer row elsewhere

    @property
    def dead_share(self) -> float:
        return self.count_dead / self.count_volumes

    @property
    def live_bytes(self) -> float:
        return self.size_bytes * (1 - self.dead_share)


def find_thin(data_root: Path) -> list[ThinShard]:
    """Finds the shards with both current and superseded volumes, in order of their paths."""
    return [ThinShard(*row) for row in store.query(data_root, store.load_sql(__package__, "thin_shards"))]


def compact(run: StageRun, thin: Sequence[ThinShard]) -> int:
    """Copies the current volumes of shards into new shards and checks their checksums. Returns the count of new shards.

    Each new file is written before its rows. The old files stay, so that open readers go on. An old file is garbage
    as soon as no row and no training names it.
    """
    number = 0

    def key(shard: ThinShard) -> tuple[str, str, str]:
        return _group(run, shard)

    for _, alike in itertools.groupby(sorted(thin, key=key), key):
        for part in _pack(list(alike), run.limits.shard_bytes, run.limits.shard_volumes):
            path = f"shards/{part[0].recipe_id}/{run.run_id}-{number:06d}.arrow"
            _rewrite(run, part, path)
            number += 1
            run.publish_if_due()
    return number


def _group(run: StageRun, shard: ThinShard) -> tuple[str, str, str]:
    """Recipe, encoding and code version of a shard. Only shards with the same are joined."""
    with ShardReader(run.data_root / shard.shard_path) as reader:
        return reader.recipe_id, reader.encoding, reader.code_version


def _pack(shards: Sequence[ThinShard], most_bytes: int, most_volumes: int) -> Iterator[list[ThinShard]]:
    """Groups shards so that the current volumes of each group fit in one new shard."""
    part: list[ThinShard] = []
    for shard in shards:
        joined = [*part, shard]
        count = sum(member.count_volumes - member.count_dead for member in joined)
        if part and (sum(member.live_bytes for member in joined) > most_bytes or count > most_volumes):
            yield part
            joined = [shard]
        part = joined
    yield part


def _rewrite(run: StageRun, shards: Sequence[ThinShard], path: str) -> None:
    """Writes the shards' current volumes into one shard at `path` and records it."""
    paths = [shard.shard_path for shard in shards]
    with store.read(run.data_root) as connection:
        alive = connection.sql(store.load_sql(__package__, "live_volumes"), params=[paths]).to_arrow_table()
    sources = zip(alive["shard_path"].to_pylist(), alive["row_index"].to_pylist(), strict=True)
    target = run.data_root / path
    copy_volumes([(run.data_root / name, row_index) for name, row_index in sources], target)
    shard = {
        "shard_path": path, "recipe_id": shards[0].recipe_id, "count_volumes": alive.num_rows,
        "fingerprint": compute_fingerprint(alive["fingerprint"].to_pylist()), "size_bytes": target.stat().st_size,
    }  # fmt: skip
    run.record("shards", [shard])
    moved = alive.drop_columns(["run_id", "shard_path", "row_index"])
    moved = moved.append_column("shard_path", pa.array([path] * alive.num_rows))
    run.record("shard_volumes", moved.append_column("row_index", pa.array(range(alive.num_rows), pa.int32())))
    run.count_done += alive.num_rows
