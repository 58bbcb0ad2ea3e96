"""Leases: one run of a stage at a time, on whichever machine, by a file in `locks/` that its holder keeps touching.

filelock's `SoftFileLease` makes the file, touches it and takes over from a dead process. This module adds the cases
that the library leaves open: machines of one host name, file systems that cannot exchange two files, files that a
power cut left empty, and lock files of older versions of this project.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import LeaseSettingsMismatch, OwnerRecord, SoftFileLease, Timeout

from ctclip_model.errors import ConfigurationError, LeaseLostError
from ctclip_model.lock_files import WatchedFile
from tasks.settings import LIMITS, Limits

logger = logging.getLogger(__name__)

POLL_S = 0.5  # seconds between two attempts at a lease
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds. After a wait for another run (`has_waited`), earlier plans are out of date."""

    stage: str
    claim: SoftFileLease
    has_waited: bool

    def check(self) -> None:
        """Raises `LeaseLostError` if the lease is no longer this process's, as after a suspended machine wakes up."""
        owner = self.claim.owner
        is_lost = owner.token != self.claim.token if owner else not os.path.lexists(self.claim.lock_file)
        if is_lost or self.claim.compromise is not None:
            raise LeaseLostError(f"{self.stage}: another run has taken over the lease {self.claim.lock_file}")


@contextmanager
def hold_lease(data_root: Path, stage: str, limits: Limits = LIMITS) -> Iterator[Lease]:
    """Holds the lease of a stage, after waiting for another holder where there is one.

    A process of this machine that is gone loses its lease at once. Any other holder loses it after `lease_expiry_s`
    without a heartbeat, measured by the waiter's own monotonic clock. Raises `ConfigurationError` after `lease_wait_s`
    if the holder is alive.
    """
    folder = data_root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    claim = SoftFileLease(
        folder / f"{stage}.lease",
        lease_duration=limits.lease_expiry_s,
        heartbeat_interval=min(limits.lease_heartbeat_s, limits.lease_expiry_s / 3),
        thread_local=False,
    )
    has_waited = _acquire(claim, stage, limits)
    try:
        yield Lease(stage, claim, has_waited)
    finally:
        claim.release()


def is_held(data_root: Path, stage: str, expiry_s: float = LIMITS.lease_expiry_s) -> bool:
    """True if a live process holds the stage's lease. Writes nothing.

    A holder on another machine counts as alive until its last heartbeat is `expiry_s` old by this machine's clock. A
    heartbeat from further ahead tells nothing, so that the next one is waited for.
    """
    path = data_root / "locks" / f"{stage}.lease"
    owner = SoftFileLease(path).owner
    if _is_of_this_boot(owner):
        return _is_running_here(owner)
    for file in (path, path.with_suffix(".json")):
        with suppress(FileNotFoundError):
            age_s = time.time() - file.stat().st_mtime
            if -expiry_s < age_s < expiry_s or (age_s < 0 and _has_heartbeat(file)):
                return True
    return False


def _has_heartbeat(path: Path) -> bool:
    """True if a lock file changes while two heartbeats are due."""
    file = WatchedFile(path)
    deadline = time.monotonic() + 2 * LIMITS.lease_heartbeat_s
    while file.unchanged_s() is not None and not file.has_changed and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return file.has_changed


def _acquire(claim: SoftFileLease, stage: str, limits: Limits) -> bool:
    """Acquires a claim, and returns if that took a wait."""
    file = WatchedFile(Path(claim.lock_file))
    older_file = WatchedFile(file.path.with_suffix(".json"))  # as versions before filelock's lease wrote it
    deadline = time.monotonic() + limits.lease_wait_s
    has_waited = False
    while not _try_acquire(claim, file, older_file, limits.lease_expiry_s):
        if not has_waited:
            logger.warning("%s is being run by %s; waiting for it to end", stage, _describe_holder(claim, older_file))
        has_waited = True
        is_alive = file.has_changed or older_file.has_changed or _is_running_here(claim.owner)
        if is_alive and time.monotonic() >= deadline:
            raise ConfigurationError(f"{stage}: gave up waiting for {_describe_holder(claim, older_file)}")
        time.sleep(POLL_S)
    return has_waited


def _try_acquire(claim: SoftFileLease, file: WatchedFile, older_file: WatchedFile, expiry_s: float) -> bool:
    for held in (older_file, file):
        age_s = held.unchanged_s()
        if age_s is None:
            continue
        if age_s >= expiry_s:
            held.remove()
        elif held is older_file or not _is_of_this_boot(claim.owner):
            return False  # filelock would look for the holder's process here, although it ran on another machine
    try:
        claim.acquire(blocking=False)
    except (Timeout, LeaseSettingsMismatch):
        return False
    return True


def _is_running_here(owner: OwnerRecord | None) -> bool:
    if owner is None or not _is_of_this_boot(owner):
        return False
    import psutil  # imported late: most questions find no holder

    try:
        return bool(psutil.Process(owner.pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_of_this_boot(owner: OwnerRecord | None) -> bool:
    """Tells the holders whose processes this process can look for; never true where /proc is hidden."""
    try:
        PID_NAMESPACE.stat()
        boot_id = int(BOOT_ID.read_text("utf-8").strip().replace("-", ""), 16)
    except (OSError, ValueError):
        return False
    return owner is not None and owner.start is not None and owner.start >> 64 == boot_id


def _describe_holder(claim: SoftFileLease, older_file: WatchedFile) -> str:
    owner = claim.owner
    if owner is not None:
        return f"process {owner.pid} on {owner.hostname.partition('?')[0]}"
    try:
        holder = json.loads(older_file.path.read_text("utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"the holder of {claim.lock_file}"
