"""Leases: one run of a stage at a time, dead holders lose theirs, and live ones keep it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ctclip_model import lock_files
from ctclip_model.errors import ConfigurationError, LeaseLostError
from tasks.run import lease
from tasks.run.lease import hold_lease, is_held
from tasks.run.stage_run import open_run
from tasks.settings import LIMITS

NEVER_EXPIRES = replace(LIMITS, lease_expiry_s=3600.0, lease_heartbeat_s=0.05, lease_wait_s=0.0)
HOLD = """
import sys, time
from pathlib import Path
from tasks.run.lease import hold_lease, is_held
from tasks.settings import Limits
with hold_lease(Path(sys.argv[1]), "convert", Limits(lease_expiry_s=3600.0, lease_heartbeat_s=0.05)):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(data_root: Path, *prefix: str):
    """A process that holds the lease of `convert`."""
    command = [*prefix, sys.executable, "-c", HOLD, str(data_root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def kill_holder(data_root: Path) -> Path:
    """The lock file that a killed process left."""
    with holder(data_root):
        pass
    return data_root / "locks/convert.lease"


class Clock:
    """A clock that moves when somebody sleeps, and may do something then."""

    def __init__(self, at_sleep=lambda: None) -> None:
        self.now_s, self.at_sleep = 0.0, at_sleep

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s
        self.at_sleep()


def test_second_caller_waits_for_the_first(tmp_path, monkeypatch):
    waits, warnings, has_waited = threading.Event(), [], []

    def warn(message, *arguments):
        warnings.append(message % arguments)
        waits.set()

    monkeypatch.setattr(lease.logger, "warning", warn)

    def second():
        with hold_lease(tmp_path, "convert") as held:
            has_waited.append(held.has_waited)

    with hold_lease(tmp_path, "convert") as held:
        assert not held.has_waited
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(timeout=60)
        assert not has_waited
    thread.join(timeout=60)
    assert has_waited == [True]
    assert f"convert is being run by process {os.getpid()}" in warnings[0]


def test_another_stage_does_not_wait(tmp_path):
    with hold_lease(tmp_path, "convert"), hold_lease(tmp_path, "label") as held:
        assert not held.has_waited


def test_lease_of_a_killed_process_is_taken_over_before_it_expires(tmp_path):
    path = kill_holder(tmp_path)
    assert path.exists()
    with hold_lease(tmp_path, "convert", NEVER_EXPIRES):
        pass
    assert not path.exists()


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    for module in (lease, lock_files):
        monkeypatch.setattr(module, "time", clock)


def another_boot(path: Path) -> None:
    path.write_text(re.sub(r"start=(\d+)", lambda match: f"start={int(match[1]) + (1 << 64)}", path.read_text()))


def another_host(path: Path) -> None:
    path.write_text(re.sub(r"host=.*", "host=elsewhere", path.read_text()))
    another_boot(path)


def unknown_mode(path: Path) -> None:
    path.write_text(path.read_text().replace("mode=lease", "mode=of-a-later-version"))


def other_duration(path: Path) -> None:
    path.write_text(re.sub(r"duration=.*", "duration=7.0", path.read_text()))
    another_host(path)


def heartbeat_of_the_future(path: Path) -> None:
    another_boot(path)
    os.utime(path, (2**33, 2**33))


def lock_file_of_an_older_version(path: Path) -> None:
    path.with_suffix(".lock").touch()
    path.rename(path.with_suffix(".json"))
    path.with_suffix(".json").write_text(
        json.dumps({"token": "x", "host": "elsewhere", "pid": None, "started": None, "heartbeat": 2**33})
    )


@pytest.mark.parametrize(
    "change",
    [
        another_boot,
        another_host,
        unknown_mode,
        other_duration,
        heartbeat_of_the_future,
        lock_file_of_an_older_version,
        pytest.param(lambda path: path.write_text(""), id="left_empty_by_a_power_cut"),
        pytest.param(lambda path: path.write_text("{}"), id="not_a_lock_file"),
        pytest.param(lambda path: path.write_text("filelock/2\npid=\nhost=\nmode=lease\n"), id="empty_fields"),
    ],
)
def test_holder_that_nobody_can_look_for_loses_its_lease_when_it_expires(tmp_path, monkeypatch, change):
    change(kill_holder(tmp_path))
    clock = Clock()
    set_clock(monkeypatch, clock)
    with hold_lease(tmp_path, "convert", replace(LIMITS, lease_wait_s=0.0)) as held:
        assert held.has_waited
        assert LIMITS.lease_expiry_s <= clock.now_s < 2 * LIMITS.lease_expiry_s
        assert [path.name for path in (tmp_path / "locks").iterdir() if path.suffix != ".lock"] == ["convert.lease"]


@pytest.mark.parametrize("change", [another_boot, another_host, lock_file_of_an_older_version])
def test_holder_elsewhere_keeps_its_lease_while_it_touches_the_file_whatever_its_clock(tmp_path, monkeypatch, change):
    change(kill_holder(tmp_path))
    (path,) = (path for path in (tmp_path / "locks").iterdir() if path.suffix != ".lock")
    times = iter(range(2**33, 0, -1000))  # a clock that goes backwards

    def touch():
        os.utime(path, (now := next(times), now))

    set_clock(monkeypatch, Clock(touch))
    with (
        pytest.raises(ConfigurationError, match="convert: gave up waiting for "),
        hold_lease(tmp_path, "convert", replace(LIMITS, lease_wait_s=10 * LIMITS.lease_expiry_s)),
    ):
        pass


def test_process_that_cannot_be_seen_in_proc_keeps_its_lease(tmp_path, monkeypatch):
    with holder(tmp_path):
        monkeypatch.setattr(lease, "BOOT_ID", tmp_path / "hidden")
        with (
            pytest.raises(ConfigurationError, match="gave up"),
            hold_lease(tmp_path, "convert", NEVER_EXPIRES),
        ):
            pass


def test_process_in_another_pid_namespace_keeps_its_lease(tmp_path):
    apart = ("unshare", "--pid", "--fork", "--mount-proc")
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine makes no PID namespaces")
    with (
        holder(tmp_path, *apart),
        pytest.raises(ConfigurationError, match="gave up"),
        hold_lease(tmp_path, "convert", NEVER_EXPIRES),
    ):
        pass


def test_heartbeats_go_on_after_some_that_failed(tmp_path, monkeypatch):
    utime, count, is_beating = os.utime, iter(range(100)), threading.Event()

    def full_for_a_while(*arguments, **options):
        if next(count) < 3:
            raise OSError(errno.ENOSPC, "no space left on device")
        utime(*arguments, **options)
        is_beating.set()

    monkeypatch.setattr(os, "utime", full_for_a_while)
    with hold_lease(tmp_path, "convert", NEVER_EXPIRES) as held:
        assert is_beating.wait(timeout=60)
        held.check()


def test_holder_hears_that_it_lost_its_lease_and_leaves_the_new_one_alone(tmp_path):
    with hold_lease(tmp_path, "convert", NEVER_EXPIRES) as first:
        (tmp_path / "locks/convert.lease").unlink()
        with pytest.raises(LeaseLostError, match="another run has taken over"):
            first.check()
        other = hold_lease(tmp_path, "convert", NEVER_EXPIRES)
        second = other.__enter__()
        with pytest.raises(LeaseLostError):
            first.check()
    second.check()
    other.__exit__(None, None, None)
    assert not list((tmp_path / "locks").iterdir())


def test_run_that_lost_its_lease_stops_before_it_writes(tmp_path):
    with pytest.raises(LeaseLostError), open_run(tmp_path, "convert") as run:
        run.record("exclusions", [{"volume_name": "valid_1_a_1", "reason": "first"}])
        (tmp_path / "locks/convert.lease").unlink()
        before = sorted(tmp_path.glob("records/*/*"))
        with pytest.raises(LeaseLostError):
            run.record("exclusions", [{"volume_name": "valid_1_a_1", "reason": "second"}])
        with pytest.raises(LeaseLostError):
            run.publish_if_due()
        run.count_done = 1
    assert sorted(tmp_path.glob("records/*/*")) == before


@pytest.mark.parametrize(("ahead_s", "held"), [(-60, False), (-59, True), (59, True), (60, False), (8 * 3600, False)])
@pytest.mark.parametrize("is_alive", [False, True])
def test_a_heartbeat_from_ahead_counts_for_the_status_if_another_follows(
    tmp_path, monkeypatch, ahead_s, held, is_alive
):
    path = kill_holder(tmp_path)
    another_boot(path)
    beats = itertools.count(1_000_000 + ahead_s)

    def beat() -> None:
        os.utime(path, (next(beats),) * 2)

    beat()
    clock = Clock(beat if is_alive else lambda: None)
    clock.time = lambda: 1_000_000.0
    set_clock(monkeypatch, clock)
    assert is_held(tmp_path, "convert", expiry_s=60.0) == (held or (is_alive and ahead_s > 0))
    assert clock.now_s <= 2 * LIMITS.lease_heartbeat_s
