"""Garbage collection: superseded shards and latents, models without a row, converted raw files, partial files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from ctclip_model.stages import PIPELINE
from tasks.remote.files import HASH_SUFFIX, PARTIAL_FOLDER, RemoteFile
from tasks.run.lease import hold_lease
from tasks.run.lost import find_all_lost_volumes, find_lost_shards
from tasks.run.publish import publish
from tasks.run.stage_run import open_run
from tasks.settings import LIMITS
from tasks.volumes.compact import ThinShard, compact, find_thin
from warehouse import store

# The leases of all that write files below the data root. A GPU worker may outlive the stage that ordered its work.
LEASES = (*PIPELINE, *(f"{stage.name}-worker" for stage in PIPELINE.values() if stage.is_ordered))


@dataclass(frozen=True)
class Garbage:
    """A file or folder of the data root that no current row refers to."""

    path: Path
    size_bytes: int
    reason: str


@dataclass(frozen=True)
class Collection:
    """Result of a garbage collection."""

    garbage: list[Garbage]  # deletable, or deleted on request
    thin: list[ThinShard]  # shards that are superseded in part
    count_compacted: int = 0  # new shards with the current volumes of thin ones


def collect_garbage(
    data_root: Path, *, delete: bool = False, compact_shards: bool = False, keep_raw: bool = False
) -> Collection:
    """Lists the garbage of a data root, and deletes it on request.

    Rows are history and stay, except latents of superseded runs: the warehouse is rebuilt without them.
    Holds the lease of every stage, so that no file is unrecorded or in use. `compact_shards` also rewrites shards
    that are mostly superseded. Raises `ConfigurationError` while a stage is running.
    """
    data_root = data_root.resolve()
    without_waiting = replace(LIMITS, lease_wait_s=0)
    with ExitStack() as leases:
        for stage in LEASES:
            leases.enter_context(hold_lease(data_root, stage, without_waiting))
        publish(data_root)  # files of unpublished records would look like garbage
        found = list(_find_garbage(data_root, keep_raw))
        if delete:
            _delete(data_root, found)
        found_thin = find_thin(data_root)
        lost = find_lost_shards(data_root, (shard.shard_path for shard in found_thin))
        thin, count = [shard for shard in found_thin if shard.shard_path not in lost], 0
        mostly_dead = [shard for shard in thin if shard.dead_share >= LIMITS.compacted_share]
        if compact_shards and mostly_dead:
            with open_run(data_root, "gc", limits=without_waiting) as run:
                count = compact(run, mostly_dead)
    return Collection(found, thin, count)


def _delete(data_root: Path, found: list[Garbage]) -> None:
    for garbage in found:
        shutil.rmtree(garbage.path) if garbage.path.is_dir() else garbage.path.unlink()
    if any(garbage.path.is_relative_to(data_root / "records/latents") for garbage in found):
        publish(data_root, from_scratch=True)


def _find_garbage(data_root: Path, keep_raw: bool) -> Iterator[Garbage]:
    models = _read_column(data_root, "select distinct path from models")
    yield from _find_shards(data_root, models)
    yield from _find_models(data_root, models)
    yield from _find_latents(data_root)
    lost = find_all_lost_volumes(data_root)
    if not keep_raw:
        yield from _find_converted(data_root, lost)
    yield from _find_partial(data_root, lost)


def _find_shards(data_root: Path, models: set[str]) -> Iterator[Garbage]:
    """Shards without a row, or with no current volume. A shard that an unfinished training reads is kept."""
    recorded = _read_column(data_root, "select distinct shard_path from shards")
    needed = _read_column(data_root, "select distinct shard_path from current_shard_volumes")
    needed |= _read_manifests(data_root, models)
    for path in sorted((data_root / "shards").rglob("*.arrow*")):
        name = str(path.relative_to(data_root))
        if name not in recorded:
            yield _measure(path, "left by a run that died")
        elif name not in needed:
            yield _measure(path, "every volume has a newer row")


def _find_models(data_root: Path, models: set[str]) -> Iterator[Garbage]:
    """Model folders without a row, and state of recorded trainings. A young folder's training may still resume."""
    for folder in sorted((data_root / "models").glob("*")):
        is_recorded = str(folder.relative_to(data_root)).removesuffix(".work") in models
        if not is_recorded and folder.is_dir() and _is_abandoned(folder):
            yield _measure(folder, "no row of models refers to it")
        for state in sorted(folder.glob(".state.removed-*")):
            yield _measure(state, "state of a training whose model is recorded")


def _find_latents(data_root: Path) -> Iterator[Garbage]:
    """Record files of the runs whose every latent is superseded."""
    for run_id in sorted(_read_column(data_root, _SUPERSEDED_LATENTS)):
        for path in sorted((data_root / "records/latents").glob(f"{run_id}-*.parquet")):
            yield _measure(path, "every latent has a newer row")


def _find_converted(data_root: Path, lost: set[str]) -> Iterator[Garbage]:
    """Raw files of converted volumes. Those of volumes with a lost shard are kept."""
    sql = "select path, volume_name from current_volumes semi join converted_volumes using (volume_name)"
    converted = {path for path, volume in store.query(data_root, sql) if volume not in lost}
    for path in sorted((data_root / "raw" / "dataset").rglob("*.nii.gz")):
        if str(path.relative_to(data_root / "raw")) in converted:
            yield _measure(path, "converted")
    for path in sorted((data_root / "raw" / "dataset").rglob(f"*.nii.gz{HASH_SUFFIX}")):
        name = str(path.relative_to(data_root / "raw")).removesuffix(HASH_SUFFIX)
        if name in converted or not (data_root / "raw" / name).exists():
            yield _measure(path, "hash of a file that is gone or converted")


def _find_partial(data_root: Path, lost: set[str]) -> Iterator[Garbage]:
    """Partial downloads of volumes that are converted or gone, and partial records."""
    sql = """
        select
            path, size_bytes, sha256, checksum,
            volume_name, volume_name in (select volume_name from converted_volumes)
        from current_volumes
        where coalesce(sha256, checksum) is not null
    """
    rows = store.query(data_root, sql)
    awaited = {
        RemoteFile(*facts).partial_name for *facts, volume, is_converted in rows if not is_converted or volume in lost
    }
    for path in sorted((data_root / "raw" / PARTIAL_FOLDER).glob("*")):
        if path.name not in awaited:
            yield _measure(path, "partial download that no volume needs")
    for path in sorted((data_root / "records").rglob(".*.tmp")):
        yield _measure(path, "partial record file")


def _read_manifests(data_root: Path, models: set[str]) -> set[str]:
    """Shards in the manifests of unfinished trainings, which may resume and read them."""
    shards: set[str] = set()
    for path in (data_root / "models").glob("*.work/manifest.parquet"):
        is_recorded = str(path.parent.relative_to(data_root)).removesuffix(".work") in models
        if not is_recorded and "shard_path" in pq.read_schema(path).names:
            shards.update(pq.read_table(path, columns=["shard_path"])["shard_path"].to_pylist())
    return shards


def _read_column(data_root: Path, sql: str) -> set[str]:
    return {value for (value,) in store.query(data_root, sql)}


def _measure(path: Path, reason: str) -> Garbage:
    files = path.rglob("*") if path.is_dir() else [path]
    return Garbage(path, sum(file.stat().st_size for file in files if file.is_file()), reason)


def _is_abandoned(folder: Path) -> bool:
    """Tells that nothing in a folder was written for `abandoned_s`."""
    newest = max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
    return time.time() - newest > LIMITS.abandoned_s


_SUPERSEDED_LATENTS = "select run_id from latents group by run_id having bool_and(superseded_by_run is not null)"
