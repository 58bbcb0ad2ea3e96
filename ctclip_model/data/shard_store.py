"""Shards in the data root or, those that it lacks, in a bucket of any protocol that fsspec knows."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

T = TypeVar("T")

BUCKET_VARIABLE = "CTCLIP_SHARDS"  # address of the bucket: `ctclip sync-shards` fills it


@dataclass(frozen=True)
class ShardStore:
    """The data root and the bucket that shards lie in. A shard's path is below them: `shards/<recipe_id>/0.arrow`."""

    data_root: Path
    bucket: str = ""

    @staticmethod
    def find(data_root: Path) -> ShardStore:
        """The data root, with the bucket of `CTCLIP_SHARDS`."""
        return ShardStore(data_root, os.environ.get(BUCKET_VARIABLE, "").rstrip("/"))

    def locate(self, shard_path: str) -> Path | str:
        """The file's path or, if the data root lacks it, its address in the bucket."""
        path = self.data_root / shard_path
        return f"{self.bucket}/{shard_path}" if self.bucket and not path.exists() else path

    def list_names(self, folder: str) -> set[str]:
        """Names of the shards in a folder of the bucket. Raises `OSError`."""
        if not self.bucket:
            return set()
        files, key = open_system(f"{self.bucket}/{folder}")
        return {str(path).rpartition("/")[2] for path in ask(lambda: files.find(key, maxdepth=1))}


def measure(where: Path | str) -> int:
    """Size of a shard in bytes. Raises `OSError`."""
    if isinstance(where, Path):
        return where.stat().st_size
    files, key = open_system(where)
    return int(ask(lambda: files.size(key)))


def open_shard(where: Path | str) -> BinaryIO:
    """Opens a shard. Raises `OSError`, as all reading does."""
    return where.open("rb") if isinstance(where, Path) else cast(BinaryIO, RemoteShard(where))


class RemoteShard:
    """A shard in a bucket, read by ranges. It raises `OSError` alone, without the text of the protocol's library.

    That text may hold a signature or a key. The library finds endpoint and credentials, and tries again, by itself.
    """

    closed = False

    def __init__(self, address: str) -> None:
        files, key = open_system(address)
        self._file = ask(lambda: files.open(key, "rb", cache_type="none"))
        self.seek, self.tell = self._file.seek, self._file.tell

    def read(self, count: int = -1) -> bytes:
        return bytes(ask(lambda: self._file.read(count)))

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def __enter__(self) -> RemoteShard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_system(address: str) -> tuple[Any, str]:
    """The protocol's file system, and the address as it writes it. Raises `OSError`."""
    import fsspec

    files, key = ask(lambda: fsspec.core.url_to_fs(address))
    return files, str(key)


def ask(request: Callable[[], T]) -> T:
    """Makes a request of a protocol's library. Raises `OSError` without the library's text."""
    try:
        return request()
    except Exception as error:  # noqa: BLE001  each protocol has errors of its own
        number = error.errno if isinstance(error, OSError) else None
        raise OSError(number or errno.EIO, f"the bucket's library failed ({type(error).__name__})") from None
