"""What nothing needs any more: superseded shards and latents, models without a row, converted raw files, halves."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from tasks.hub.files import PARTIAL_FOLDER
from tasks.run.lease import hold_lease
from tasks.run.publish import publish
from tasks.run.records import new_run_id
from tasks.run.stage_run import open_run
from tasks.settings import LIMITS, STAGES
from tasks.volumes.compact import ThinShard, compact, find_thin
from warehouse import store

# Their order may have outlived its stage.
WORKERS = ("train-worker", "train-labeller-worker", "finetune-worker", "embed-worker")
FOLDERS_ARE_WRITTEN_BY = (*STAGES, *WORKERS, "download", "train-labeller", "import-model")


@dataclass(frozen=True)
class Garbage:
    """A file or folder below the data root that no row refers to, or only one that another supersedes."""

    path: Path
    size_bytes: int
    why: str


@dataclass(frozen=True)
class Collection:
    """What may go, or has gone; the shards that are dead in part; and how many new ones hold what was alive of them."""

    garbage: list[Garbage]
    thin: list[ThinShard]
    count_compacted: int = 0


def collect_garbage(
    data_root: Path, *, delete: bool = False, compact_shards: bool = False, keep_raw: bool = False
) -> Collection:
    """What may go, and, on request, is gone; shards that are mostly dead are, on request, rewritten.

    Rows are history and stay, but for the latents of superseded runs: the warehouse is then remade without them.
    Holds every stage's lease meanwhile: nothing may be written that is not recorded yet, and nobody reads what goes.
    Raises `ConfigurationError` where a stage is being run.
    """
    data_root = data_root.resolve()
    at_once = replace(LIMITS, lease_wait_s=0)
    with ExitStack() as leases:
        for stage in FOLDERS_ARE_WRITTEN_BY:
            leases.enter_context(hold_lease(data_root, stage, new_run_id(), at_once))
        publish(data_root)
        found = list(_find(data_root, keep_raw))
        for garbage in found if delete else ():
            shutil.rmtree(garbage.path) if garbage.path.is_dir() else garbage.path.unlink()
        if delete and any(garbage.path.is_relative_to(data_root / "records/latents") for garbage in found):
            publish(data_root, from_scratch=True)
        thin, count = find_thin(data_root), 0
        mostly_dead = [shard for shard in thin if shard.dead_share >= LIMITS.compacted_share]
        if compact_shards and mostly_dead:
            with open_run(data_root, "gc", limits=at_once) as run:
                count = compact(run, mostly_dead)
    return Collection(found, thin, count)


def _find(data_root: Path, keep_raw: bool) -> Iterator[Garbage]:
    current = _column(data_root, "select distinct shard_path from current_shard_volumes")
    recorded = _column(data_root, "select distinct shard_path from shards")
    models = _column(data_root, "select distinct path from models")
    volumes = "select {} from current_volumes {} join converted_volumes using (volume_name)"
    converted = _column(data_root, volumes.format("path", "semi"))
    awaited = _column(data_root, volumes.format("sha256", "anti"))
    awaited_shards = _read_manifests(data_root, models)
    for path in sorted((data_root / "shards").rglob("*.arrow*")):
        name = str(path.relative_to(data_root))
        if name not in recorded:
            yield _garbage(path, "left by a run that died")
        elif name not in current and name not in awaited_shards:
            yield _garbage(path, "every volume has a newer row")
    for path in sorted((data_root / "models").glob("*")):
        is_known = str(path.relative_to(data_root)).removesuffix(".work") in models
        if not is_known and path.is_dir() and _is_old(path):  # a younger one's training may yet go on from there
            yield _garbage(path, "no row of models refers to it")
        for leaving in sorted(path.glob(".state.removed-*")):
            yield _garbage(leaving, "left of a training that is recorded")
    for run_id in sorted(_column(data_root, _SUPERSEDED_LATENTS)):
        for path in sorted((data_root / "records/latents").glob(f"{run_id}-*.parquet")):
            yield _garbage(path, "every latent has a newer row")
    for path in sorted((data_root / "raw" / "dataset").rglob("*.nii.gz")):
        if str(path.relative_to(data_root / "raw")) in converted and not keep_raw:
            yield _garbage(path, "converted")
    for path in sorted((data_root / "raw" / PARTIAL_FOLDER).glob("*")):
        if path.name not in awaited:
            yield _garbage(path, "half of a file that nobody awaits")
    for path in sorted((data_root / "records").rglob(".*.tmp")):
        yield _garbage(path, "half of a record")


def _read_manifests(data_root: Path, models: set[str]) -> set[str]:
    """The shards that a training which has not ended, and may go on from there, was told to read."""
    shards: set[str] = set()
    for path in (data_root / "models").glob("*.work/manifest.parquet"):
        is_done = str(path.parent.relative_to(data_root)).removesuffix(".work") in models
        if not is_done and "shard_path" in pq.read_schema(path).names:
            shards.update(pq.read_table(path, columns=["shard_path"])["shard_path"].to_pylist())
    return shards


def _column(data_root: Path, query: str) -> set[str]:
    with store.read(data_root) as connection:
        return {value for (value,) in connection.execute(query).fetchall()}


def _garbage(path: Path, why: str) -> Garbage:
    files = path.rglob("*") if path.is_dir() else [path]
    return Garbage(path, sum(file.stat().st_size for file in files if file.is_file()), why)


def _is_old(path: Path) -> bool:
    """Whether nothing in a folder has been written for longer than anybody leaves a training."""
    newest = max(file.stat().st_mtime for file in (path, *path.rglob("*")))
    return time.time() - newest > LIMITS.abandoned_s


_SUPERSEDED_LATENTS = "select run_id from latents group by run_id having bool_and(superseded_by_run is not null)"
