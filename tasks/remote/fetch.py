"""Downloads of remote files: resumed in a later process too, checked, and one at a time for each file."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ctclip_model.errors import DownloadError, FileRefusedError, RemoteUnavailableError
from tasks.remote.files import PARTIAL_FOLDER, RemoteFile, Store

CHANGED = "changed_since_ingest"  # reason of a reject: the store holds another file by now
LOCK_POLL_S = 0.2  # seconds between looks at a file that another process downloads


class StoppedError(Exception):
    """The meter was stopped and the downloads end."""


class Meter:
    """Counts the bytes that several threads download, limits their rate and stops them.

    `bytes_per_s` is the limit of all threads together. None: no limit.
    """

    def __init__(self, bytes_per_s: float | None = None) -> None:
        self.bytes_per_s = bytes_per_s
        self.fetched_bytes = 0
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def add(self, count: int) -> None:
        """Counts downloaded bytes and waits until the rate allows more. Raises `StoppedError` once stopped."""
        with self._lock:
            self.fetched_bytes += count
            now = time.monotonic()
            if self.bytes_per_s:
                self._free_at = max(self._free_at, now) + count / self.bytes_per_s
            wait_s = self._free_at - now
        if wait_s > 0:
            self.sleep(wait_s)
        if self.stopped.is_set():
            raise StoppedError

    def sleep(self, duration_s: float) -> None:
        self.stopped.wait(duration_s)


def fetch(store: Store, file: RemoteFile, folder: Path, meter: Meter | None = None) -> bool:
    """Downloads a file to its path below `folder` unless it is there. Returns True if it was downloaded.

    A download that broke off is resumed, in a later process too. A file that is refused or has a wrong hash is
    asked for once more. Raises `DownloadError` if it is wrong again, and `RemoteError`.
    """
    target, partial = folder / file.path, folder / PARTIAL_FOLDER / file.partial_name
    if file.is_at(target):
        return False
    for path in (target, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
    meter = meter or Meter()
    with _open_alone(partial, meter) as stream:
        if file.is_at(target):  # another process has downloaded it meanwhile
            partial.unlink()
            return False
        try:
            _fill_and_check(store, file, partial, stream, target, meter)
        finally:
            if stream.tell() == 0 and file.size_bytes:
                partial.unlink(missing_ok=True)  # nothing came
        partial.replace(target)  # without fsync: readers check the hash
    return True


def _fill_and_check(
    store: Store, file: RemoteFile, partial: Path, stream: BinaryIO, target: Path, meter: Meter
) -> None:
    for is_last in (False, True):
        try:
            _fill_patiently(store, file, stream, meter)
            stream.flush()
            _check(store, file, partial, target, meter)
            return
        except FileRefusedError:
            if is_last:
                raise
        except DownloadError as error:
            if is_last or error.reason == CHANGED:
                partial.unlink(missing_ok=True)
                raise
            _cut(stream, 0)


def _check(store: Store, file: RemoteFile, partial: Path, target: Path, meter: Meter) -> None:
    """Raises `DownloadError` for wrong bytes. Content without a usable hash is told by a second look at the store."""
    if file.matches(partial):
        return
    is_hash_sure = file.find_hash() is not None and not (file.checksum or "").startswith("etag:")
    if not (file.sha256 or is_hash_sure):
        now = store.ask(lambda: store.find_files([file.path]), meter.sleep).get(file.path)
        if not file.is_same(now):
            raise DownloadError(file.path, CHANGED, "has changed in the bucket: run `ctclip ingest`")
        if now and (now.has_opaque_etag or file.find_hash() is None):
            file.keep_hash(partial, target)
            return
    raise DownloadError(file.path, "wrong_hash", f"has another hash than {file.content_id}")


@contextmanager
def _open_alone(path: Path, meter: Meter) -> Iterator[BinaryIO]:
    """Opens a file to append to, once no other process has it open. Raises `StoppedError`."""
    while True:
        with path.open("ab") as stream:
            while not _try_lock(stream):
                meter.sleep(LOCK_POLL_S)
                if meter.stopped.is_set():
                    raise StoppedError
            if _is_still_at(stream, path):
                yield stream
                return


def _try_lock(stream: BinaryIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _is_still_at(stream: BinaryIO, path: Path) -> bool:
    """False if the file was renamed or deleted before its lock was free."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _fill_patiently(store: Store, file: RemoteFile, stream: BinaryIO, meter: Meter) -> None:
    """Downloads the rest of a partial file, and counts the attempts anew as long as bytes arrive."""
    while True:
        have = stream.tell()
        try:
            store.ask(lambda: _fill(store, file, stream, meter), meter.sleep)
        except RemoteUnavailableError:
            if stream.tell() <= have:
                raise
        else:
            return


def _fill(store: Store, file: RemoteFile, stream: BinaryIO, meter: Meter) -> None:
    """Downloads the rest of a partial file in one request."""
    have = stream.tell()
    if have == file.size_bytes:
        return
    if have > file.size_bytes:
        have = 0
    with store.open(file, have) as (start, chunks):
        if stream.tell() != start:
            _cut(stream, start)  # the answer is the complete file, not the rest
        for chunk in chunks:
            if stream.tell() + len(chunk) > file.size_bytes:
                raise DownloadError(file.path, "wrong_size", f"is longer than {file.size_bytes} bytes")
            stream.write(chunk)
            meter.add(len(chunk))
    if stream.tell() < file.size_bytes:
        raise DownloadError(file.path, "wrong_size", f"is shorter than {file.size_bytes} bytes")


def _cut(stream: BinaryIO, size: int) -> None:
    stream.truncate(size)
    stream.seek(size)
