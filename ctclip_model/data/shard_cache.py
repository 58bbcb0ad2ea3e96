"""Copies of shards on a disk of the node, made in the background while volumes are read from where they lie.

Several processes share the folder. A copy is used once it is complete and each of its volumes matches its checksum.
Whatever is wrong with the cache, volumes are read in place.

Training reads in random order, so a shard's last use says nothing about its next one. Shards of the data set in use
are therefore no room for others of it: once the cache is full, the rest is read in place. Shards that no process has
read for an hour make room, the longest unused first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.shard_store import ShardStore, measure, open_shard
from ctclip_model.data.shards import ShardReader
from ctclip_model.errors import ConfigurationError, ShardError

FOLDER_VARIABLE = "CTCLIP_SHARD_CACHE"  # folder on a fast disk of the node
BOUND_VARIABLE = "CTCLIP_SHARD_CACHE_GB"  # bound of all copies together. Default: `DISK_SHARE` of what the disk has
DISK_SHARE = 0.9
KEPT_S = 3600.0  # a shard that any process has read since makes no room
MARKED_S = 60.0  # seconds between two marks of a shard's use
POLL_S = 0.5  # seconds between looks at a shard that another process copies
BEHIND = 2  # shards behind the reader that stay: several threads read
BLOCK_BYTES = 16 << 20
PART = ".part"  # suffix of an incomplete copy

logger = logging.getLogger(__name__)


class _NoRoomError(Exception):
    """No shard makes room for another."""


@dataclass(frozen=True)
class _File:
    """A copy, or a part of one."""

    path: Path
    size: int  # bytes
    used_at: float  # time of its last use


class ShardCache:
    """The copies of the shards of one data set.

    `shard_paths` are in the order of need. With `in_order` they are read once in this order: a reader waits for the
    copy of its shard, and the shards behind it make room.
    """

    def __init__(
        self, store: ShardStore, shard_paths: Iterable[str], folder: Path, bound: int, *, in_order: bool = False
    ) -> None:
        origin = store.bucket or str(store.data_root.resolve())
        self.store, self.in_order, self.bound, self.root = store, in_order, bound, folder
        self.folder = folder / compute_fingerprint(origin)[:16]
        self._places = {path: place for place, path in enumerate(dict.fromkeys(shard_paths))}
        self._place = 0  # The reader needs the shard of this place
        self._waiting = deque(self._places)
        self._ready: set[str] = set()
        self._marked: dict[str, float] = {}
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    @staticmethod
    def find(data_root: Path, shard_paths: Iterable[str], *, in_order: bool = False) -> ShardCache | None:
        """The cache of `CTCLIP_SHARD_CACHE`. None: there is none, or its folder cannot be used, which is a warning.

        Raises `ConfigurationError` for a bound that is no number of gigabytes.
        """
        name, bound = os.environ.get(FOLDER_VARIABLE, ""), os.environ.get(BOUND_VARIABLE, "")
        if not name:
            return None
        folder = Path(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                room = shutil.disk_usage(folder).free + sum(file.size for file in _scan(folder))
        except OSError as error:
            logger.warning("%s: no shard is cached: %s", folder, error.strerror)
            return None
        size = _parse_bound(bound) if bound else int(DISK_SHARE * room)
        return ShardCache(ShardStore.find(data_root), shard_paths, folder, size, in_order=in_order)

    def locate(self, shard_path: str) -> Path | str:
        """The copy of a shard, or where the shard itself lies."""
        with self._changed:
            self._start()
            if self.in_order:
                self._place = max(self._place, self._places[shard_path])
                self._changed.notify_all()
                while shard_path in self._waiting:
                    self._changed.wait()
            elif shard_path in self._waiting:  # the next one to copy
                self._waiting.remove(shard_path)
                self._waiting.appendleft(shard_path)
            is_ready = shard_path in self._ready
        if not is_ready or not self._mark(shard_path):
            return self.store.locate(shard_path)
        return self.folder / shard_path

    def forget(self, shard_paths: Iterable[str]) -> bool:
        """Deletes the copies of some shards, of which one cannot be read. False: none has a copy.

        These shards are read in place from now on.
        """
        with self._changed:
            copied = self._ready & {*shard_paths}
            self._ready -= copied
        for shard_path in copied:
            logger.warning("%s: the copy of %s is damaged or gone, so it is read in place", self.root, shard_path)
            (self.folder / shard_path).unlink(missing_ok=True)
        return bool(copied)

    def fill(self) -> set[str]:
        """Waits until every shard is copied, or there is no room for more. Returns the copied ones."""
        with self._changed:
            self._start()
            while self._waiting:
                self._changed.wait()
            return {*self._ready}

    def stop(self) -> None:
        """Ends the copying. Copies stay."""
        with self._changed:
            self._is_stopped = True
            self._waiting.clear()
            self._changed.notify_all()

    def _mark(self, shard_path: str) -> bool:
        """Notes the use of a copy. False: another process has taken it away."""
        now = time.monotonic()
        if now - self._marked.get(shard_path, -MARKED_S) < MARKED_S:
            return True
        self._marked[shard_path] = now
        try:
            os.utime(self.folder / shard_path)
        except OSError:
            self._ready.discard(shard_path)
            return False
        return True

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shard-cache", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._copy_all()
        except _NoRoomError:
            logger.info("%s: the cache is full, so other shards are read in place", self.root)
        except Exception as error:  # noqa: BLE001  a cache that fails stops no training
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            logger.warning("%s: no further shard is copied: %s", self.root, reason)
        self.stop()

    def _copy_all(self) -> None:
        for shard_path in self._places:
            if self._is_whole(shard_path):
                self._settle(shard_path, is_ready=True)
        while shard_path := self._next():
            try:
                is_ready = self._copy(shard_path)
            except BlockingIOError:  # another process copies it
                with self._changed:
                    self._changed.wait(POLL_S)
                    if not self.in_order and self._waiting:
                        self._waiting.rotate(-1)
                continue
            except _NoRoomError:
                if not self._wait_for_reader(shard_path):
                    raise
                continue
            except ShardError as error:
                logger.warning("%s is not copied: %s", shard_path, error)
                is_ready = False
            self._settle(shard_path, is_ready=is_ready)

    def _next(self) -> str:
        with self._changed:
            return self._waiting[0] if self._waiting else ""

    def _settle(self, shard_path: str, *, is_ready: bool) -> None:
        with self._changed:
            if is_ready:
                self._ready.add(shard_path)
            with suppress(ValueError):  # stopped meanwhile
                self._waiting.remove(shard_path)
            self._changed.notify_all()

    def _wait_for_reader(self, shard_path: str) -> bool:
        """Waits for a reader in order to leave shards behind. False: it needs this very shard, or reads at random."""
        with self._changed:
            place = self._place
            if not self.in_order or place >= self._places[shard_path]:
                return False
            while self._place == place and not self._is_stopped:
                self._changed.wait()
        return True

    def _is_whole(self, shard_path: str) -> bool:
        try:
            return (self.folder / shard_path).stat().st_size == measure(self.store.locate(shard_path))
        except FileNotFoundError:
            return False

    def _copy(self, shard_path: str) -> bool:
        """Copies and checks a shard. False: the copying was stopped.

        Raises `BlockingIOError` while another process copies it, `ShardError` for a copy with damage, and `OSError`.
        """
        path = self.folder / shard_path
        part = path.with_name(path.name + PART)
        part.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_same(file, part):  # another process has just ended its copy
                raise BlockingIOError
            try:
                if self._is_whole(shard_path):
                    return True
                where = self.store.locate(shard_path)
                self._reserve(file, part, measure(where))
                with open_shard(where) as source:
                    while block := source.read(BLOCK_BYTES):
                        if self._is_stopped:
                            return False
                        file.write(block)
                file.flush()
                _check(part)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        return True

    def _reserve(self, file: BinaryIO, part: Path, size: int) -> None:
        """Makes room for a part and takes it. Raises `_NoRoomError`, or `OSError` on a full disk."""
        with _locked(self.root):
            files = [one for one in _scan(self.root) if one.path != part]
            excess = sum(one.size for one in files) + size - self.bound
            for one in sorted(filter(self._makes_room, files), key=lambda one: one.used_at):
                if excess <= 0:
                    break
                one.path.unlink(missing_ok=True)
                excess -= one.size
            if excess > 0:
                raise _NoRoomError
            os.posix_fallocate(file.fileno(), 0, size)

    def _makes_room(self, file: _File) -> bool:
        place = None
        if file.path.is_relative_to(self.folder):
            place = self._places.get(str(file.path.relative_to(self.folder)))
        if place is not None:
            return self.in_order and place + BEHIND <= self._place
        return time.time() - file.used_at >= KEPT_S


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _check(path: Path) -> None:
    """Raises `ShardError` unless every volume of a shard matches its checksum."""
    with ShardReader(path, verify=True) as reader:
        for row in range(len(reader)):
            reader.read(row)


def _scan(folder: Path) -> Iterator[_File]:
    """The copies in a cache, of all data roots, and parts of copies."""
    for path in folder.rglob("*.arrow*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            yield _File(path, stat.st_size, stat.st_mtime)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time counts the cache and makes room in it."""
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _parse_bound(text: str) -> int:
    try:
        bound = float(text) * 1e9
    except ValueError:
        bound = 0.0
    if not 0 < bound < 1e18:
        raise ConfigurationError(f"{BOUND_VARIABLE} is {text!r}, not a number of gigabytes")
    return int(bound)
