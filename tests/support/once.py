"""Made once for all processes of a test run: a folder that takes long to fill, and the Prefect server."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from filelock import FileLock

from support.processes import start_python, wait_for

SERVE = "import sys; from support.prefect_server import serve; serve(sys.argv[1])"
SERVERS: list[subprocess.Popen[str]] = []  # kept, because each ends by itself after this process


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
    """Prefect's own test server, in a process of its own that ends after the last test process has left it.

    So none of them waits for another, which on a slow machine is longer than a test may take.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (shared / "prefect.users").open("a") as users:
        with FileLock(shared / "prefect.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            url = read_address(shared) or start_server(shared)
        # The variable is for commands, which ask before they import Prefect.
        with temporary_settings({PREFECT_API_URL: url}), patch.dict(os.environ, {"PREFECT_API_URL": url}):
            yield


def read_address(shared: Path) -> str:
    """The running server's URL, or an empty text."""
    address = shared / "prefect.url"
    return address.read_text() if address.exists() else ""


def start_server(shared: Path) -> str:
    """Starts the server and returns its URL. Raises `AssertionError` with the end of its log."""
    with (shared / "prefect.log").open("ab") as log:
        own = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
        server = start_python(SERVE, shared, **own)
    SERVERS.append(server)
    wait_for(lambda: read_address(shared) or server.poll() is not None)
    assert read_address(shared), (shared / "prefect.log").read_text()[-2000:]
    return read_address(shared)
