"""A published warehouse that stays open between two questions of one process.

A new DuckDB instance that attaches the file takes 20 ms of processor time, and a rebuild asks some 200 questions.
"""

from __future__ import annotations

import atexit
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

IDLE_S = 2.0  # seconds after the last question, from which on the file is closed

Check = Callable[[duckdb.DuckDBPyConnection], Any]


class KeptOpen:
    """Keeps the file that was read last open, until no reader has come or gone for `IDLE_S`.

    Each reader has its own connection to one instance of DuckDB. It keeps the file that it opened, closed here or not.
    The next reader gets a new instance once the file has been replaced or written to.
    """

    def __init__(self) -> None:
        self.count_opened = 0  # files that were opened, for tests
        self._lock = threading.Lock()
        self._instance: duckdb.DuckDBPyConnection | None = None
        self._identity: tuple[int, ...] = ()
        self._last_s = 0.0
        self._has_timer = False

    def connect(self, path: Path, check: Check) -> duckdb.DuckDBPyConnection:
        """Opens a read-only connection. `check` may raise an error, and sees each opened file once.

        Give the connection back to `release`. Raises `OSError` for a missing file, and `duckdb.Error` for one that
        cannot be opened.
        """
        with self._lock:
            identity = _identify(path)
            if self._instance is None or identity != self._identity:
                self._close()
                self._instance, self._identity = open_alone(path, check), identity
                self.count_opened += 1
            connection = self._instance.cursor()
            _prepare(connection)
        return connection

    def release(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Ends a reader's connection."""
        connection.close()
        with self._lock:
            self._last_s = time.monotonic()
            if self._instance is not None and not self._has_timer:
                self._set_timer(IDLE_S)

    def close(self) -> None:
        """Closes the file, at the latest with its last present reader."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        # `close()` would end the readers too. Without it the instance goes with its last connection.
        self._instance, self._identity = None, ()

    def _set_timer(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._close_if_idle)
        timer.daemon = True
        timer.start()
        self._has_timer = True

    def _close_if_idle(self) -> None:
        with self._lock:
            left_s = self._last_s + IDLE_S - time.monotonic()
            if left_s > 0:
                self._set_timer(left_s)
            else:
                self._has_timer = False
                self._close()


def open_alone(path: Path, check: Check) -> duckdb.DuckDBPyConnection:
    """Opens a DuckDB instance of its own, with the file attached read-only. Raises `duckdb.Error`, and as `check`."""
    # Attached, because DuckDB keeps one instance per path and process. A connection to the path itself would show the
    # old file for as long as another reader of this process holds it open.
    spill = str(Path(tempfile.gettempdir()) / f"ctclip-duckdb-{uuid.uuid4().hex}")
    connection = duckdb.connect(":memory:", config={"temp_directory": spill, "python_enable_replacements": False})
    try:
        connection.execute(f"attach '{str(path).replace(chr(39), chr(39) * 2)}' as warehouse (read_only)")
        _prepare(connection)
        check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes the settings of a session, which another connection to the same instance does not share."""
    connection.execute("use warehouse")
    connection.execute("set TimeZone = 'UTC'")


def _identify(path: Path) -> tuple[int, ...]:
    """Facts of a file that differ once another one has replaced it, or once a program has written to it."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


KEPT = KeptOpen()
atexit.register(KEPT.close)
