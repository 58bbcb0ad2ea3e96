"""One run of a stage at a time: `locks/<stage>.json` says who, and a heartbeat says that it still lives."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from ctclip_model.errors import ConfigurationError
from tasks.settings import LIMITS, Limits

logger = logging.getLogger(__name__)


@contextmanager
def hold_lease(data_root: Path, stage: str, token: str, limits: Limits = LIMITS) -> Iterator[bool]:
    """Holds the stage's lease; yields whether it had to wait for another run, after which plans are out of date.

    Takes over at once from a process of this host that is gone, and from another host after `lease_expiry_s` without
    a heartbeat. Raises `ConfigurationError` after `lease_wait_s`.
    """
    folder = data_root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage}.json"
    mutex = FileLock(folder / f"{stage}.lock")
    holder = {
        "token": token,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
    }
    deadline = time.monotonic() + limits.lease_wait_s
    has_waited = False
    while not _try_acquire(path, mutex, holder, limits):
        if not has_waited:
            logger.warning("%s is being run by %s; waiting for it to end", stage, describe_holder(path))
        has_waited = True
        if time.monotonic() > deadline:
            raise ConfigurationError(f"{stage}: gave up waiting for {describe_holder(path)}")
        time.sleep(0.5)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, mutex, holder, limits, stop), daemon=True)
    beat.start()
    try:
        yield has_waited
    finally:
        stop.set()
        beat.join()
        with mutex:
            if (_read(path) or {}).get("token") == token:
                path.unlink(missing_ok=True)


def describe_holder(path: Path) -> str:
    """Who holds a lease, in words for a log line."""
    holder = _read(path) or {}
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _try_acquire(path: Path, mutex: FileLock, holder: dict[str, Any], limits: Limits) -> bool:
    with mutex:
        other = _read(path)
        if other is not None and _is_alive(other, limits):
            return False
        _write(path, holder)
        return True


def _is_alive(holder: dict[str, Any], limits: Limits) -> bool:
    if holder.get("host") == socket.gethostname():
        started = _process_start(int(holder.get("pid", -1)))
        return started is not None and abs(started - float(holder.get("started") or 0)) < 2.0
    return time.time() - float(holder.get("heartbeat", 0)) < limits.lease_expiry_s


def _process_start(pid: int) -> float | None:
    """When a process started, which tells it from a later one of the same number; None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _beat(path: Path, mutex: FileLock, holder: dict[str, Any], limits: Limits, stop: threading.Event) -> None:
    while not stop.wait(limits.lease_heartbeat_s):
        with mutex:
            if (_read(path) or {}).get("token") == holder["token"]:
                _write(path, holder)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


def _write(path: Path, holder: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(holder | {"heartbeat": time.time()}))
    temporary.replace(path)
