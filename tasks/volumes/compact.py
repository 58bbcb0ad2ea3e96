"""Shards of which a part is superseded: how much of each is dead, and what is alive in new shards."""

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
    """A shard, relative to the data root, some of whose volumes have a newer row elsewhere."""

    shard_path: str
    recipe_id: str
    size_bytes: int
    count_volumes: int
    count_dead: int

    @property
    def dead_share(self) -> float:
        return self.count_dead / self.count_volumes

    @property
    def live_bytes(self) -> float:
        return self.size_bytes * (1 - self.dead_share)


def find_thin(data_root: Path) -> list[ThinShard]:
    """The shards of which a part, and not all, is superseded, by recipe and path."""
    with store.read(data_root) as connection:
        rows = connection.execute(_THIN).fetchall()
    return [ThinShard(*row) for row in rows]


def compact(run: StageRun, thin: Sequence[ThinShard]) -> int:
    """Copies what is alive in the shards into new ones, checked against its checksums, and returns how many it made.

    The new file is there before its rows, and the old files stay: whoever has one open reads on, and one that no row
    and no training names any more is garbage from then on.
    """
    number = 0
    for _, alike in itertools.groupby(sorted(thin, key=lambda one: _kind(run, one)), lambda one: _kind(run, one)):
        for part in _pack(list(alike), run.limits.shard_bytes, run.limits.shard_volumes):
            path = f"shards/{part[0].recipe_id}/{run.run_id}-{number:06d}.arrow"
            _rewrite(run, part, path)
            number += 1
            run.publish_if_due()
    return number


def _kind(run: StageRun, shard: ThinShard) -> tuple[str, str, str]:
    """Only shards that were made alike go together."""
    with ShardReader(run.data_root / shard.shard_path) as reader:
        return reader.recipe_id, reader.encoding, reader.code_version


def _pack(shards: Sequence[ThinShard], most_bytes: int, most_volumes: int) -> Iterator[list[ThinShard]]:
    part: list[ThinShard] = []
    for shard in shards:
        joined = [*part, shard]
        count = sum(one.count_volumes - one.count_dead for one in joined)
        if part and (sum(one.live_bytes for one in joined) > most_bytes or count > most_volumes):
            yield part
            joined = [shard]
        part = joined
    yield part


def _rewrite(run: StageRun, shards: Sequence[ThinShard], path: str) -> None:
    with store.read(run.data_root) as connection:
        paths = [shard.shard_path for shard in shards]
        alive = connection.sql(_ALIVE, params=[paths]).to_arrow_table()
    places = zip(alive["shard_path"].to_pylist(), alive["row_index"].to_pylist(), strict=True)
    target = run.data_root / path
    copy_volumes([(run.data_root / name, row) for name, row in places], target)
    shard = {
        "shard_path": path, "recipe_id": shards[0].recipe_id, "count_volumes": alive.num_rows,
        "fingerprint": compute_fingerprint(alive["fingerprint"].to_pylist()), "size_bytes": target.stat().st_size,
    }  # fmt: skip
    run.record("shards", [shard])
    moved = alive.drop_columns(["run_id", "shard_path", "row_index"])
    moved = moved.append_column("shard_path", pa.array([path] * alive.num_rows))
    run.record("shard_volumes", moved.append_column("row_index", pa.array(range(alive.num_rows), pa.int32())))
    run.count_done += alive.num_rows


_THIN = """
select shard_path, any_value(shards.recipe_id), any_value(size_bytes), count(*),
    count(*) filter (shard_volumes.superseded_by_run is not null) as count_dead
from current_shards as shards
join shard_volumes using (shard_path)
group by shard_path
having count_dead between 1 and count(*) - 1
order by all
"""
_ALIVE = """
select * from current_shard_volumes where shard_path in (select unnest($1)) order by shard_path, row_index
"""
