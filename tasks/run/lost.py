"""Files of rows that are gone from the data root: shards and model folders. Names are compared, and no file is read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctclip_model.data.shard_store import ShardStore
from ctclip_model.errors import MissingInputError
from warehouse import store

MODEL_FILES = ("config.json", "model.safetensors")  # files of every model folder
GONE = (errno.ENOENT, errno.ENOTDIR)  # a file or folder that is not there


@dataclass(frozen=True)
class _Row:
    """A volume in a shard."""

    recipe_id: str
    volume_name: str
    path: str  # shard, below the data root
    fingerprint: str
    is_wanted: bool  # the shard holds the volume as it is at present
    is_rejected: bool  # the volume was rejected for good since


def find_lost_shards(data_root: Path, shard_paths: Iterable[str]) -> set[str]:
    """Finds the shards whose files are gone, as paths below the data root. Each folder is listed once.

    A folder or a dangling link of a shard's name is no shard. Raises `MissingInputError` for an unreadable folder.
    """
    wanted = set(shard_paths)
    folders = {str(PurePosixPath(path).parent) for path in wanted}
    found = {str(PurePosixPath(folder, name)) for folder in folders for name in _list_files(data_root / folder)}
    lost = wanted - found
    return lost - _list_bucket(data_root, folders) if lost else lost


def _list_bucket(data_root: Path, folders: Iterable[str]) -> set[str]:
    """The shards of some folders that the bucket of `CTCLIP_SHARDS` holds, as paths below it."""
    shards = ShardStore.find(data_root)
    try:
        return {f"{folder}/{name}" for folder in folders for name in shards.list_names(folder)}
    except OSError as error:
        raise MissingInputError(f"{shards.bucket} cannot be listed: {error.strerror}") from error


def find_lost_volumes(
    data_root: Path, recipe_id: str, wanted: Mapping[str, str], *, with_rejects: bool = False
) -> dict[str, str]:
    """Finds the converted volumes of a recipe whose shards are gone, as {volume: shard}.

    `wanted` are present volumes as {volume: fingerprint}. A shard of another fingerprint does not matter. A volume
    that was rejected for good since is left out, except `with_rejects`. Raises `MissingInputError` if every shard of
    the recipe is gone, as below the empty mount point of `shards/`.
    """
    paths = _list_paths(data_root, recipe_id)
    lost = find_lost_shards(data_root, paths)
    if not lost:
        return {}
    if lost == paths:
        raise MissingInputError(_describe_unmounted(data_root, recipe_id, len(paths)))
    return {
        row.volume_name: row.path
        for row in _read_rows(data_root, recipe_id)
        if row.path in lost and wanted.get(row.volume_name) == row.fingerprint and (with_rejects or not row.is_rejected)
    }


def find_all_lost_volumes(data_root: Path) -> set[str]:
    """Finds the present volumes that lost a shard of any recipe."""
    if not find_lost_shards(data_root, _list_paths(data_root)):
        return set()
    rows = [row for row in _read_rows(data_root) if row.is_wanted]
    lost = find_lost_shards(data_root, (row.path for row in rows))
    return {row.volume_name for row in rows if row.path in lost}


def require_shards(data_root: Path, shard_paths: Iterable[str]) -> None:
    """Raises `MissingInputError` if a shard is gone."""
    if lost := sorted(find_lost_shards(data_root, shard_paths)):
        raise MissingInputError(
            f"{len(lost)} shards are lost, such as {lost[0]}: run `ctclip convert`, which makes them again"
        )


def is_there(folder: Path) -> bool:
    """True if a model folder has its files. Raises `MissingInputError` for an unreadable folder."""
    return set(MODEL_FILES) <= set(_list_files(folder))


def list_lost(data_root: Path) -> list[str]:
    """Sentences on the lost shards of each recipe, on each lost model, and on folders that cannot be read."""
    shards: dict[str, dict[str, bool]] = {}
    for row in _read_rows(data_root) if _may_have_lost_shards(data_root) else ():
        if row.is_wanted:
            rejected = shards.setdefault(row.recipe_id, {})
            rejected[row.path] = row.is_rejected and rejected.get(row.path, True)
    lines = [
        line for recipe_id, rejected in shards.items() for line in _list_lost_shards(data_root, recipe_id, rejected)
    ]
    models = store.query(data_root, "select model_id, path from current_models where path is not null order by run_id")
    return lines + [line for model_id, path in models for line in _list_lost_model(data_root, model_id, path)]


def _may_have_lost_shards(data_root: Path) -> bool:
    """True if a shard is gone, wanted or not, or if a folder cannot be read."""
    try:
        return bool(find_lost_shards(data_root, _list_paths(data_root)))
    except MissingInputError:
        return True


def _list_lost_shards(data_root: Path, recipe_id: str, rejected: Mapping[str, bool]) -> Iterator[str]:
    """Sentences on a recipe's shards, {path: all of its volumes were rejected since}."""
    try:
        lost = find_lost_shards(data_root, rejected)
    except MissingInputError as error:
        yield str(error)
        return
    again = [path for path in lost if not rejected[path]]
    if lost and len(lost) == len(rejected):
        yield _describe_unmounted(data_root, recipe_id, len(lost))
    elif again:
        yield f"{len(again)} shards of the recipe {recipe_id} are lost. `ctclip convert` makes them again"
    if count := len(lost) - len(again):
        yield (
            f"{count} shards of the recipe {recipe_id} are lost, and their volumes were rejected since. "
            "`ctclip convert --retry-rejects` tries again"
        )


def _list_lost_model(data_root: Path, model_id: str, path: str) -> Iterator[str]:
    try:
        if not is_there(data_root / path):
            yield f"{model_id} is lost: its folder {path} lacks files. `ctclip verify` says how to make it again"
    except MissingInputError as error:
        yield str(error)


def _describe_unmounted(data_root: Path, recipe_id: str, count: int) -> str:
    return (
        f"all {count} shards of {recipe_id} are missing: is {data_root / 'shards'} mounted? `ctclip convert --force` "
        "makes them again"
    )


def _list_paths(data_root: Path, recipe_id: str | None = None) -> set[str]:
    """Shards of current volumes. There are hundreds of volumes a shard, and most often none is lost."""
    sql = "select distinct shard_path from current_shard_volumes where recipe_id = coalesce($1, recipe_id)"
    return {path for (path,) in store.query(data_root, f"{sql} and shard_path is not null", [recipe_id])}


def _read_rows(data_root: Path, recipe_id: str | None = None) -> list[_Row]:
    rows = store.query(data_root, store.load_sql(__package__, "shard_rows"), {"recipe_id": recipe_id})
    return [_Row(*row) for row in rows]


def _list_files(folder: Path) -> list[str]:
    """Names of the files of a folder. Folders and dangling links are left out. A missing folder has no files."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if _is_file(entry)]
    except OSError as error:
        if error.errno in GONE:
            return []
        raise MissingInputError(f"{folder} cannot be read: {error.strerror}") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno in (*GONE, errno.ELOOP):  # a link to itself
            return False
        raise
