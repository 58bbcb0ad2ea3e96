"""What nothing needs any more: superseded shards, models without a row, raw files that are converted, halves."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.lease import hold_lease
from tasks.publish import publish
from tasks.records import new_run_id
from tasks.settings import LIMITS, STAGES
from tasks.sources.hub_files import PARTIAL_FOLDER
from warehouse import store

FOLDERS_ARE_WRITTEN_BY = (*STAGES, "download", "train-labeller", "import-model")


@dataclass(frozen=True)
class Garbage:
    """A file or folder below the data root that no row refers to, or only one that another supersedes."""

    path: Path
    size_bytes: int
    why: str


def collect_garbage(data_root: Path, *, delete: bool = False, keep_raw: bool = False) -> list[Garbage]:
    """What may go, and, on request, is gone. Rows are history and stay.

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
    return found


def _find(data_root: Path, keep_raw: bool) -> Iterator[Garbage]:
    current = _column(data_root, "select distinct shard_path from current_shard_volumes")
    recorded = _column(data_root, "select distinct shard_path from shards")
    models = _column(data_root, "select distinct path from models")
    volumes = "select {} from current_volumes {} join converted_volumes using (volume_name)"
    converted = _column(data_root, volumes.format("path", "semi"))
    awaited = _column(data_root, volumes.format("sha256", "anti"))
    for path in sorted((data_root / "shards").rglob("*.arrow*")):
        name = str(path.relative_to(data_root))
        if name not in recorded:
            yield _garbage(path, "left by a run that died")
        elif name not in current:
            yield _garbage(path, "every volume has a newer row")
    for path in sorted((data_root / "models").glob("*")):
        is_known = str(path.relative_to(data_root)).removesuffix(".work") in models
        if not is_known and path.is_dir() and _is_old(path):  # a younger one's training may yet go on from there
            yield _garbage(path, "no row of models refers to it")
    for path in sorted((data_root / "raw" / "dataset").rglob("*.nii.gz")):
        if str(path.relative_to(data_root / "raw")) in converted and not keep_raw:
            yield _garbage(path, "converted")
    for path in sorted((data_root / "raw" / PARTIAL_FOLDER).glob("*")):
        if path.name not in awaited:
            yield _garbage(path, "half of a file that nobody awaits")
    for path in sorted((data_root / "records").rglob(".*.tmp")):
        yield _garbage(path, "half of a record")


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
