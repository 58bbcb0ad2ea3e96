"""Files of rows that are gone from the data root: shards and model folders. Names are compared, and no file is read."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ctclip_model.errors import MissingInputError
from warehouse import store

MODEL_FILES = ("config.json", "model.safetensors")  # files of every model folder


def find_lost_shards(data_root: Path, shard_paths: Iterable[str]) -> set[str]:
    """Finds the shards whose files are gone, as paths below the data root. Each folder is listed once."""
    wanted = set(shard_paths)
    folders = {str(PurePosixPath(path).parent) for path in wanted}
    return wanted - {str(PurePosixPath(folder, name)) for folder in folders for name in _list_names(data_root / folder)}


def find_lost_volumes(data_root: Path, recipe_id: str) -> dict[str, str]:
    """Finds the converted volumes of a recipe whose shards are gone, as {volume: shard}."""
    sql = "select volume_name, shard_path from current_shard_volumes where recipe_id = ? and shard_path is not null"
    shards = dict(store.query(data_root, sql, [recipe_id]))
    lost = find_lost_shards(data_root, shards.values())
    return {volume: path for volume, path in shards.items() if path in lost}


def require_shards(data_root: Path, shard_paths: Iterable[str]) -> None:
    """Raises `MissingInputError` if a shard is gone."""
    if lost := sorted(find_lost_shards(data_root, shard_paths)):
        raise MissingInputError(
            f"{len(lost)} shards are lost, such as {lost[0]}: run `ctclip convert`, which makes them again"
        )


def is_there(folder: Path) -> bool:
    """True if a model folder has its files."""
    return all((folder / name).is_file() for name in MODEL_FILES)


def list_lost(data_root: Path) -> list[str]:
    """Sentences on the lost shards of each recipe and on each lost model."""
    shards = store.query(data_root, _CURRENT_SHARDS)
    lost = find_lost_shards(data_root, (path for path, _ in shards))
    counts: dict[str, int] = {}
    for path, recipe_id in shards:
        counts[recipe_id] = counts.get(recipe_id, 0) + (path in lost)
    lines = [
        f"{count} shards of the recipe {recipe_id} are lost. `ctclip convert` makes them again"
        for recipe_id, count in sorted(counts.items())
        if count
    ]
    models = store.query(data_root, "select model_id, path from current_models where path is not null order by run_id")
    return lines + [
        f"{model_id} is lost: its folder {path} lacks files. `ctclip verify` says how to make it again"
        for model_id, path in models
        if not is_there(data_root / path)
    ]


def _list_names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return [path.name for path in folder.iterdir()]
    return []


_CURRENT_SHARDS = "select distinct shard_path, recipe_id from current_shard_volumes where shard_path is not null"
