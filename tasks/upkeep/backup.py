"""Copies of what cannot be made again: the records and the models. Either may be copied while stages run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.files import whole_file
from tasks.run.publish import publish
from warehouse.fold import RECORDS_FOLDER
from warehouse.tables import TABLES

MODELS_FOLDER = "models"


def back_up(data_root: Path, target: Path) -> int:
    """Copies records and models that the target lacks, and returns the number of copied files.

    A stage that begins meanwhile is in the copy with all that it refers to, or not at all: a run is recorded before its
    rows, and a model's folder is complete before its row. So rows are copied first, then runs, then models.
    Raises `MissingInputError` if there are no records, and `ConfigurationError` if the target lies in the data root.
    """
    if not (data_root / RECORDS_FOLDER).is_dir():
        raise MissingInputError(f"there is nothing to copy: {data_root} has no records")
    if target.resolve().is_relative_to(data_root.resolve()):
        raise ConfigurationError(f"{target} lies in the data root, and would be lost with it")
    return sum(_copy_missing(path, target / path.relative_to(data_root)) for path in _list_files(data_root))


def restore(source: Path, data_root: Path) -> int:
    """Copies a backup into an empty data root, makes its warehouse, and returns the number of copied files.

    Shards and raw files are not part of a backup: `ctclip convert` makes them again.
    Raises `MissingInputError` if there is no backup, and `ConfigurationError` if the data root has records.
    """
    if not (source / RECORDS_FOLDER).is_dir():
        raise MissingInputError(f"{source} is no backup: it has no folder {RECORDS_FOLDER}")
    if any((data_root / RECORDS_FOLDER).rglob("*.parquet")):
        raise ConfigurationError(f"{data_root} has records already: restore into an empty folder")
    copied = sum(_copy_missing(path, data_root / path.relative_to(source)) for path in _list_files(source))
    publish(data_root, from_scratch=True)
    return copied


def _list_files(root: Path) -> Iterator[Path]:
    """Files of a data root or a backup, each folder listed only after the folders before it are copied."""
    for table in TABLES:  # `runs` stands last
        yield from sorted((root / RECORDS_FOLDER / table.name).glob("[!.]*.parquet"))
    for path in sorted((root / MODELS_FOLDER).rglob("*")):
        inside = path.relative_to(root / MODELS_FOLDER)
        is_unfinished = any(part.startswith(".") or part.endswith(".work") for part in inside.parts)
        if path.is_file() and not is_unfinished:
            yield path


def _copy_missing(path: Path, target: Path) -> bool:
    """Copies a file unless the target is as large and no older. Files of a data root never change in place."""
    stat = path.stat()
    if target.is_file() and (target.stat().st_size, target.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, whole_file(target) as file:
        shutil.copyfileobj(source, file, 1 << 20)
    shutil.copystat(path, target)
    return True
