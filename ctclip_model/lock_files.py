"""Lock files that stand for a holder by being there, as on file systems without flock."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_WAIT_S = 600.0  # seconds to wait for another download of the same file
BEGUN_S = 2.0  # seconds after which an empty lock file is no longer one that its holder is about to fill


class WatchedFile:
    """A lock file, watched for changes by this process's own clock, since the clocks of two machines differ."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: tuple[int, ...] | None = None
        self.seen_at = 0.0
        self.has_changed = False

    def unchanged_s(self) -> float | None:
        """Seconds since a change was seen, or None if there is no file."""
        try:
            stat = self.path.lstat()
        except FileNotFoundError:
            self.state = None
            return None
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if state != self.state:
            self.has_changed = self.has_changed or self.state is not None
            self.state, self.seen_at = state, time.monotonic()
        return time.monotonic() - self.seen_at

    def remove(self) -> None:
        """Removes the file, unless another process has replaced it since it was watched."""
        assert self.state is not None
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.expired")
        try:
            self.path.rename(aside)  # succeeds for one of several waiters
        except FileNotFoundError:
            return
        if aside.lstat().st_ino != self.state[0]:
            with suppress(FileExistsError):
                os.link(aside, self.path)
        aside.unlink()


def has_flock(folder: Path) -> bool:
    """True if the file system of a folder has the locks of `flock`."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno != errno.ENOSYS
    return True


@contextmanager
def bounded_hub_locks() -> Iterator[None]:
    """Bounds the Hub client's wait for its lock files, within the block.

    Without flock the client takes any lock file for held and waits for ever: also the empty ones that flock left. Those
    are removed here. Raises `filelock.Timeout` after `LOCK_WAIT_S`.
    """
    from huggingface_hub import file_download

    lock = file_download.WeakFileLock

    @contextmanager
    def bounded(lock_file: str | Path, *, timeout: float | None = None) -> Iterator[object]:
        _remove_unheld(Path(lock_file))
        with lock(lock_file, timeout=timeout or LOCK_WAIT_S) as held:
            yield held

    file_download.WeakFileLock = bounded  # type: ignore[assignment]
    try:
        yield
    finally:
        file_download.WeakFileLock = lock


def _remove_unheld(path: Path) -> None:
    """Removes an empty lock file where there is no flock. A holder writes its process into the file."""
    if not path.exists() or path.stat().st_size or has_flock(path.parent):
        return
    file = WatchedFile(path)
    while (unchanged_s := file.unchanged_s()) is not None and not path.stat().st_size:
        if unchanged_s >= BEGUN_S:
            file.remove()
            return
        time.sleep(BEGUN_S / 10)
