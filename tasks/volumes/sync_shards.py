"""Copies the shards of a data root to a bucket, from which workers read them: see `ShardStore`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ctclip_model.data.shard_store import BUCKET_VARIABLE, ask, open_system
from ctclip_model.errors import ConfigurationError, MissingInputError, RemoteUnavailableError
from tasks.run.progress import show_progress
from warehouse import store

UPLOADS_AT_ONCE = 4
CURRENT = "select distinct shard_path from current_shard_volumes where shard_path is not null order by all"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncedShards:
    """Result of a copy: shards by what became of them. `lost` ones are neither here nor in the bucket."""

    address: str
    count_shards: int
    count_copied: int
    bytes_copied: int
    count_lost: int

    as_json = asdict


def sync_shards(data_root: Path, address: str) -> SyncedShards:
    """Copies each current shard that the bucket lacks, or has in another size. A rerun goes on from there.

    Shards never change, and no object is deleted. Raises `ConfigurationError` for an address of no bucket,
    `MissingInputError` without a shard, and `RemoteUnavailableError`, without the library's text, for its faults.
    """
    address = address.rstrip("/")
    if "://" not in address or address.startswith("hf://"):
        raise ConfigurationError(f"--to {address}: is no address of a bucket, such as s3://BUCKET/PREFIX")
    paths = [path for (path,) in store.query(data_root, CURRENT)]
    if not paths:
        raise MissingInputError(f"{data_root} has no shard: run `ctclip convert`")
    try:
        return _sync(data_root, address, paths)
    except OSError as error:
        raise RemoteUnavailableError(
            f"{address} cannot be written ({error.strerror}): check the address and its library's credentials, and run "
            "this again: it goes on from here"
        ) from error


def _sync(data_root: Path, address: str, paths: list[str]) -> SyncedShards:
    files, root = open_system(address)
    there = _list_sizes(files, root, paths)
    here = {path: size for path in paths if (size := _measure(data_root / path)) is not None}
    missing = [path for path, size in here.items() if there.get(path) != size]
    count_lost = len({*paths} - here.keys() - there.keys())
    total = sum(here[path] for path in missing)
    with show_progress("sync-shards", total, "bytes") as progress, ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        waiting = {pool.submit(_upload, files, data_root / path, f"{root}/{path}"): path for path in missing}
        try:
            for future in as_completed(waiting):
                future.result()
                progress.advance(here[waiting[future]])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    arrived = _list_sizes(files, root, missing)
    if bad := [path for path in missing if arrived.get(path) != here[path]]:
        raise RemoteUnavailableError(f"{address}/{bad[0]} is not complete, as are {len(bad)} shards: run this again")
    return SyncedShards(address, len(paths), len(missing), total, count_lost)


def _upload(files: Any, path: Path, key: str) -> None:
    ask(lambda: files.makedirs(key.rpartition("/")[0], exist_ok=True))  # An object store has no folders
    ask(lambda: files.put_file(str(path), key))


def _measure(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _list_sizes(files: Any, root: str, paths: Iterable[str]) -> dict[str, int]:
    """Sizes of the objects in the folders of some shards, by shard path."""
    found: dict[str, int] = {}
    files.invalidate_cache()
    for folder in sorted({str(PurePosixPath(path).parent) for path in paths}):
        infos = ask(lambda folder=folder: files.find(f"{root}/{folder}", maxdepth=1, detail=True))  # type: ignore[misc]
        found |= {f"{folder}/{key.rpartition('/')[2]}": int(info["size"]) for key, info in infos.items()}
    return found


def describe(synced: SyncedShards) -> str:
    """The result in words, with the variable that lets a worker read the bucket."""
    lost = f", {synced.count_lost} lost" if synced.count_lost else ""
    return (
        f"{synced.count_shards} shards: {synced.count_copied} copied ({synced.bytes_copied / 1e9:.2f} GB){lost}\n"
        f"Workers read them with {BUCKET_VARIABLE}={synced.address}"
    )
