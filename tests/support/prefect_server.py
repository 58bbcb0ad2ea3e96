"""The Prefect server of a test run, in a process that `support.once` starts."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

from filelock import FileLock


def serve(folder: str) -> None:
    """Serves the test run of a folder, with the address in it, until nobody holds the lock of its users."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    shared = Path(folder)
    address, written = shared / "prefect.url", shared / "prefect.url.new"
    with prefect_test_harness(server_startup_timeout=120), (shared / "prefect.users").open("a") as users:
        written.write_text(PREFECT_API_URL.value())
        written.replace(address)
        while True:
            time.sleep(0.5)
            with FileLock(shared / "prefect.lock"):
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                address.unlink()
                return
