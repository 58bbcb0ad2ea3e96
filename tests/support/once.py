"""Made once for all processes of a test run: a folder that takes long to fill, and the Prefect server."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from filelock import FileLock


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, filled by the process that asks for it first. The others wait. Nobody may change it."""
    done = folder.with_name(f"{folder.name}.done")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@contextmanager
def serve_prefect(shared: Path) -> Iterator[None]:
    """Prefect's own test server. The process that asks first starts it, and stops it after the others have left."""
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    address, start = shared / "prefect.url", FileLock(shared / "prefect.lock")
    with (shared / "prefect.users").open("a") as users:
        start.acquire()
        if address.exists():
            fcntl.flock(users, fcntl.LOCK_SH)
            start.release()
            url = address.read_text()
            with temporary_settings({PREFECT_API_URL: url}), patch.dict(os.environ, {"PREFECT_API_URL": url}):
                yield
            return
        with prefect_test_harness(server_startup_timeout=120):
            address.write_text(url := PREFECT_API_URL.value())
            start.release()
            with patch.dict(os.environ, {"PREFECT_API_URL": url}):  # for commands, which ask before they import Prefect
                yield
            with start:
                address.unlink()
                fcntl.flock(users, fcntl.LOCK_EX)  # waits for the others
