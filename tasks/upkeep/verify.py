"""Checksums of a data root: record files, with the latents in them, shards and models. Reads all of them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.config import DECISIONS_FILE, PRESETS
from ctclip_model.data.shards import ShardReader
from ctclip_model.errors import CheckFailedError, CTCLIPError, ShardError, WarehouseError
from ctclip_model.files import sha256_of
from tasks.run.lost import GONE, MODEL_FILES
from tasks.run.progress import show_progress
from tasks.settings import count_workers
from warehouse import fold, store
from warehouse.tables import TABLES

BACKUP = "copy it from a backup"
READABLE = "mend its permissions or its file system, then verify again"
LOST = "is lost"
FOLD_AGAIN = "run `ctclip publish --from-scratch`, then verify again"


@dataclass(frozen=True)
class Damage:
    """A damaged or lost file of the data root, and the remedy."""

    path: str  # below the data root
    fault: str
    remedy: str


@dataclass(frozen=True)
class Verification:
    """Result of a verification: the number of things read, and the damaged ones."""

    count_records: int
    count_shards: int
    count_models: int
    damages: list[Damage]


def verify(data_root: Path) -> Verification:
    """Reads every record file, current shard and current model of a data root, and compares checksums. Writes nothing.

    Record files have checksums of their pages, and those of older versions only a size. Shards have a CRC-32 of each
    volume, in the shard and in its row. Models have the SHA-256 of their weights. Every check of the warehouse runs on
    all of its rows.
    """
    data_root = data_root.resolve()
    try:
        known = _read_known(data_root)
        damages = _check_warehouse(data_root)
    except CTCLIPError as error:
        known = _Known({}, {}, [])
        damages = [Damage(store.WAREHOUSE_FILE, str(error), FOLD_AGAIN)]
    listed, unlisted = _list_records(data_root)  # after the warehouse: it names no file that was made later
    damages += unlisted
    records = sorted(known.sizes.keys() | listed)
    unreadable = _find_unreadable(data_root, [*records, *known.shards])
    damages += [Damage(folder, fault, READABLE) for folder, fault in unreadable.items()]
    checks = [
        partial(_check_record, data_root, known.sizes, path) for path in records if _parent(path) not in unreadable
    ]
    damages += _run(checks, "record files")
    checks = [
        partial(_check_shard, data_root, path, facts)
        for path, facts in known.shards.items()
        if _parent(path) not in unreadable
    ]
    damages += _run(checks, "shards")
    for model in known.models:
        damages += _check_model(data_root, *model)
    return Verification(len(records), len(known.shards), len(known.models), _drop_outdated(data_root, damages))


@dataclass(frozen=True)
class _Known:
    """Files that the warehouse names."""

    sizes: dict[str, int]  # bytes of each record file
    shards: dict[str, _ShardFacts]
    models: list[tuple[Any, ...]]

    @property
    def paths(self) -> set[str]:
        return {*self.sizes, *self.shards, *(model[0] for model in self.models)}


def _read_known(data_root: Path) -> _Known:
    sizes = dict(store.query(data_root, "select path, size_bytes from record_files"))
    models = store.query(data_root, store.load_sql(__package__, "models"))
    return _Known(sizes, _read_shards(data_root), models)


def _list_records(data_root: Path) -> tuple[set[str], list[Damage]]:
    """Record files below the data root, and a damage for a file or folder that is not of records."""
    try:
        return {file.path for file in fold.list_records(data_root)}, []
    except OSError:  # a folder that `_find_unreadable` names
        return set(), []
    except WarehouseError as error:
        return set(), [
            Damage(fold.RECORDS_FOLDER, f"cannot be listed: {error}", "move it elsewhere, then verify again")
        ]


def _find_unreadable(data_root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Faults of the folders of records and other files, by folder. A folder that is gone is left out."""
    faults = {}
    tables = (f"{fold.RECORDS_FOLDER}/{table.name}" for table in TABLES)
    for folder in dict.fromkeys((fold.RECORDS_FOLDER, *tables, *map(_parent, paths))):
        try:
            os.scandir(data_root / folder).close()
        except OSError as error:
            if error.errno not in GONE:
                faults[folder] = f"cannot be read: {error.strerror}"
    return faults


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _check_warehouse(data_root: Path) -> list[Damage]:
    try:
        store.check(data_root)
    except CheckFailedError as error:
        return [Damage(store.WAREHOUSE_FILE, str(error), FOLD_AGAIN)]
    return []


def _run(checks: Sequence[Callable[[], list[Damage]]], unit: str) -> list[Damage]:
    """Runs checks in threads, and returns what they find."""
    found = []
    with ThreadPoolExecutor(count_workers()) as pool, show_progress("verify", len(checks), unit) as progress:
        for damages in pool.map(lambda check: check(), checks):
            found += damages
            progress.advance()
    return found


def _drop_outdated(data_root: Path, damages: list[Damage]) -> list[Damage]:
    """Drops the lost files that are there now, and those that the warehouse no longer names."""
    if not any(damage.fault == LOST for damage in damages):
        return damages
    try:
        named = _read_known(data_root).paths
    except CTCLIPError:
        return damages
    return [damage for damage in damages if damage.fault != LOST or _is_still_lost(data_root, named, damage.path)]


def _is_still_lost(data_root: Path, named: set[str], path: str) -> bool:
    return not named.isdisjoint((path, _parent(path))) and not os.access(data_root / path, os.F_OK)


def _check_record(data_root: Path, sizes: dict[str, int], path: str) -> list[Damage]:
    """Compares a record file's size with the one that was published, and decodes its pages."""
    file = data_root / path
    try:
        size = file.stat().st_size
        if size != sizes.get(path, size):
            return [Damage(path, f"has {size} bytes and had {sizes[path]}", BACKUP)]
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            for group in range(parquet.num_row_groups):
                parquet.read_row_group(group)
    except OSError as error:
        return [_describe_error(path, error, BACKUP)]
    except (ValueError, pa.ArrowException) as error:  # ValueError: text that is no UTF-8
        return [Damage(path, f"is damaged: {error}", BACKUP)]
    return []


def _describe_error(path: str, error: OSError, remedy: str) -> Damage:
    """Damage of a file that cannot be read. An error of a format has no number."""
    if error.errno in GONE:
        return Damage(path, LOST, remedy)
    if error.errno is None:
        return Damage(path, f"is damaged: {error}", remedy)
    return Damage(path, f"cannot be read: {error.strerror or error}", READABLE)


@dataclass(frozen=True)
class _ShardFacts:
    recipe_id: str
    size_bytes: int | None
    rows: list[tuple[int, str, int | None]]  # (row, volume, CRC-32)


def _read_shards(data_root: Path) -> dict[str, _ShardFacts]:
    """Shards of the current volumes, with all that their rows say of them."""
    rows = store.query(data_root, store.load_sql(__package__, "shards"))
    return {
        path: _ShardFacts(recipe_id, size, [tuple(volume.values()) for volume in volumes])
        for path, recipe_id, size, volumes in rows
    }


def _check_shard(data_root: Path, path: str, facts: _ShardFacts) -> list[Damage]:
    """Decodes the current volumes of a shard and compares their checksums. Names the first fault."""
    file = data_root / path
    again = f"run `ctclip convert{_name_preset(facts.recipe_id)}`"
    remedy = f"delete it and {again}"
    try:
        stat_result = file.stat()
        if not stat.S_ISREG(stat_result.st_mode):
            return [Damage(path, "is no file", remedy)]
        size = stat_result.st_size
        if size == 0 or size != (facts.size_bytes or size):
            return [Damage(path, f"is damaged: it has {size} bytes and had {facts.size_bytes or 'some'}", remedy)]
        with ShardReader(file, verify=True) as reader:
            for row, volume, crc32 in facts.rows:
                reader.read(row)
                reader.check_name(row, volume)
                if crc32 is not None and reader.row(row).crc32 != crc32:
                    raise ShardError(f"{file}: row {row} is damaged: it holds another {volume} than was recorded")
    except OSError as error:
        return [_describe_error(path, error, again)]
    except (ShardError, ValueError, pa.ArrowException) as error:
        return [Damage(path, str(error).removeprefix(f"{file}: "), remedy)]
    return []


def _name_preset(recipe_id: str) -> str:
    """Option that names the preset of a recipe. Empty if no preset has the recipe."""
    named = (name for name, make in PRESETS.items() if make().recipe.recipe_id == recipe_id)
    return next((f" --preset {name}" for name in named), "")


def _check_model(
    data_root: Path,
    path: str,
    weights_sha256: str | None,
    kind: str,
    preset: str,
    parent: str | None,
    source: str | None,
) -> Iterator[Damage]:
    """Compares the weights of a model with their recorded SHA-256, and looks for its other files."""
    folder = data_root / path
    remedy = f"copy its folder from a backup, or delete it and {_name_training(kind, preset, parent, source)}"
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        yield _describe_error(path, error, remedy)
        return
    lost = [name for name in MODEL_FILES if name not in names]
    if lost:
        yield Damage(f"{path}/{lost[0]}", LOST, remedy)
        return
    for name in (*sorted(name for name in names if name.endswith(".json")), "model.safetensors"):
        again = f"run `ctclip evaluate --model {folder.name}`" if name == DECISIONS_FILE else remedy
        yield from _check_model_file(folder / name, f"{path}/{name}", weights_sha256, again)


def _check_model_file(file: Path, path: str, weights_sha256: str | None, remedy: str) -> Iterator[Damage]:
    """Looks for text that is no JSON, or weights of another SHA-256."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text("utf-8"))
        elif weights_sha256 and (found := sha256_of(file)) != weights_sha256:
            yield Damage(path, f"is damaged: its SHA-256 is {found[:12]}, not {weights_sha256[:12]}", remedy)
    except OSError as error:
        yield _describe_error(path, error, remedy)
    except ValueError as error:
        yield Damage(path, f"is damaged: {error}", remedy)


def _name_training(kind: str, preset: str, parent: str | None, source: str | None) -> str:
    """Command that makes a model again."""
    if source and kind == "external":
        return f"run `ctclip import-model --encoder {source.removeprefix('encoder:')}` with its options"
    if source:
        return f"run `ctclip import-model {source.removeprefix('file://')} --force`"
    if kind == "labeller":
        return "run `ctclip train-labeller`" + (" --kind tfidf" if preset == "tfidf" else "")
    if parent:
        return f"run `ctclip finetune --model {parent} --kind {kind}`"
    return f"run `ctclip train --preset {preset}`"
