"""Checksums of a data root: record files, with the latents in them, shards and models. Reads all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.config import PRESETS
from ctclip_model.data.shards import ShardReader
from ctclip_model.errors import CTCLIPError, ShardError
from ctclip_model.files import sha256_of
from tasks.run.lost import MODEL_FILES
from tasks.run.progress import show_progress
from tasks.settings import count_workers
from warehouse import fold, store

BACKUP = "copy it from a backup"


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
    volume, in the shard and in its row. Models have the SHA-256 of their weights.
    """
    data_root = data_root.resolve()
    files = [file.path for file in fold.list_records(data_root)]
    try:
        sizes = dict(store.query(data_root, "select path, size_bytes from record_files"))
        shards, models = _read_shards(data_root), store.query(data_root, store.load_sql(__package__, "models"))
        damages = []
    except CTCLIPError as error:
        sizes, shards, models = {}, {}, []
        damages = [Damage(store.WAREHOUSE_FILE, str(error), "run `ctclip publish --from-scratch`, then verify again")]
    with ThreadPoolExecutor(count_workers()) as pool, show_progress("verify", len(files), "record files") as progress:
        for found in pool.map(partial(_check_record, data_root, sizes), files):
            damages += found
            progress.advance()
    damages += [Damage(path, "is lost", BACKUP) for path in sorted(sizes.keys() - set(files))]
    with ThreadPoolExecutor(count_workers()) as pool, show_progress("verify", len(shards), "shards") as progress:
        for found in pool.map(partial(_check_shard, data_root), shards.items()):
            damages += found
            progress.advance()
    for model in models:
        damages += _check_model(data_root, *model)
    return Verification(len(files), len(shards), len(models), damages)


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
    except (OSError, pa.ArrowException) as error:
        return [Damage(path, f"is damaged: {error}", BACKUP)]
    return []


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


def _check_shard(data_root: Path, shard: tuple[str, _ShardFacts]) -> list[Damage]:
    """Decodes the current volumes of a shard and compares their checksums. Names the first fault."""
    path, facts = shard
    file = data_root / path
    remedy = f"delete it and run `ctclip convert{_name_preset(facts.recipe_id)}`"
    if not file.exists():
        return [Damage(path, "is lost", remedy.removeprefix("delete it and "))]
    try:
        size = file.stat().st_size
        if size != (facts.size_bytes or size):
            return [Damage(path, f"has {size} bytes and had {facts.size_bytes}", remedy)]
        with ShardReader(file, verify=True) as reader:
            for row, volume, crc32 in facts.rows:
                reader.read(row)
                reader.check_name(row, volume)
                if crc32 is not None and reader.row(row).crc32 != crc32:
                    raise ShardError(f"{file}: row {row} is damaged: it holds another {volume} than was recorded")
    except (ShardError, OSError) as error:
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
    lost = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if lost:
        yield Damage(f"{path}/{lost[0]}", "is lost", remedy)
        return
    for file in (*sorted(folder.glob("*.json")), folder / "model.safetensors"):
        if fault := _find_fault(file, weights_sha256):
            yield Damage(f"{path}/{file.name}", fault, remedy)


def _find_fault(file: Path, weights_sha256: str | None) -> str | None:
    """Fault of a model's file: text that is no JSON, or weights of another SHA-256."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text("utf-8"))
        elif weights_sha256 and (found := sha256_of(file)) != weights_sha256:
            return f"is damaged: its SHA-256 is {found[:12]}, not {weights_sha256[:12]}"
    except (OSError, ValueError) as error:
        return f"is damaged: {error}"
    return None


def _name_training(kind: str, preset: str, parent: str | None, source: str | None) -> str:
    """Command that makes a model again."""
    if source:
        return f"run `ctclip import-model {source.removeprefix('file://')} --force`"
    if kind == "labeller":
        return "run `ctclip train-labeller`" + (" --kind tfidf" if preset == "tfidf" else "")
    if parent:
        return f"run `ctclip finetune --model {parent} --kind {kind}`"
    return f"run `ctclip train --preset {preset}`"
