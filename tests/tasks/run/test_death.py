"""A process that dies under a stage: its run says so, in `runs` and in `status`."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from support.command_line import run_ctclip
from support.processes import start_python, wait_for
from support.records import write_run

from tasks.run.lease import hold_lease
from tasks.run.stage_run import open_run
from tasks.run.watcher import describe_death
from tasks.settings import LIMITS
from warehouse import store
from warehouse.store import query

RUN = """
import faulthandler, os, signal, sys, time
from pathlib import Path
from tasks.run.stage_run import open_run
with open_run(Path(sys.argv[1]), "convert", "recipe") as run:
    if "record" in sys.argv:
        run.record("exclusions", [{"volume_name": "valid_1_a_1", "reason": "x"}])
    if "publish" in sys.argv:
        from tasks.run.publish import publish
        publish(run.data_root)
    print(os.getpid(), flush=True)
    exec(sys.argv[2])
"""
CRASH = "faulthandler._sigsegv()"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
IN_CRASH = r"its process crashed \(Segmentation fault, in <module> of <string>, line 2\)"
WAITS = "time.sleep(600)"


def statuses(data_root: Path) -> list[tuple[str, str | None]]:
    """Status and detail of the runs, once they are published."""
    if not (data_root / store.WAREHOUSE_FILE).exists():
        return []
    return query(data_root, "select status, detail from runs where stage = 'convert' order by status")


def last_run(data_root: Path) -> str:
    """Last status of `convert`, as `ctclip status --json` answers."""
    done = run_ctclip("status", "--json", "--data-root", data_root)
    assert done.returncode == 0, done.stderr
    (status,) = (row["last_status"] for row in json.loads(done.stdout) if row["stage"] == "convert")
    return status


@pytest.mark.parametrize(
    ("end", "code", "line", "recorded"),
    [
        (CRASH, -signal.SIGSEGV, IN_CRASH, "record"),
        ("os.abort()", -signal.SIGABRT, r"its process crashed \(Aborted, in .*\)", "record"),
        (KILL, -signal.SIGKILL, "its process was killed", "record"),
        (KILL, -signal.SIGKILL, "its process was killed", "publish"),
        ("os._exit(3)", 3, "its process was killed", ""),
    ],
    ids=["crash", "abort", "kill", "kill after a publish", "exit without work"],
)  # fmt: skip
def test_death_is_a_line_and_the_end_of_the_run(tmp_path, end, code, line, recorded):
    with start_python(RUN, tmp_path, f"\n{end}", "record" if recorded else "", recorded) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    (found,) = errors.splitlines()
    assert re.match(rf"ctclip: convert: {line}.*\. A rerun goes on from here$", found)
    wait_for(lambda: statuses(tmp_path))
    wait_for(lambda: statuses(tmp_path)[0][0] == "died")
    assert statuses(tmp_path)[0][1] in found
    assert [status for status, _ in statuses(tmp_path)] == (["died", "running"] if recorded else ["died"])
    assert last_run(tmp_path) == "died"
    wait_for(lambda: not list(tmp_path.glob("locks/*.lease")))
    with open_run(tmp_path, "convert", "recipe") as run:
        run.announce()
    assert last_run(tmp_path) == "completed"


def test_run_that_ends_by_itself_prints_nothing(tmp_path):
    with start_python(RUN, tmp_path, "pass", "record") as process:
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    with start_python(RUN, tmp_path, "raise ValueError('bad')", "record") as process:
        _, errors = process.communicate(timeout=60)
    assert "ctclip" not in errors
    assert {status for status, _ in statuses(tmp_path)} == {"running", "completed", "failed"}


def test_status_says_died_where_nobody_records_it(tmp_path):
    write_run(tmp_path, 0, "convert", variant="recipe", status=None)  # as after a power cut
    store.publish(tmp_path)
    assert last_run(tmp_path) == "died"
    assert "died" in run_ctclip("status", "--data-root", tmp_path).stdout
    with hold_lease(tmp_path, "convert"):
        assert last_run(tmp_path) == "running"
        assert "running" in run_ctclip("status", "--data-root", tmp_path).stdout
        with hold_lease(tmp_path, "label"):
            pass
    with hold_lease(tmp_path, "label"):
        assert last_run(tmp_path) == "died"


@pytest.mark.parametrize(
    ("age_s", "status"), [(-LIMITS.lease_expiry_s / 2, "running"), (LIMITS.lease_expiry_s, "died")]
)
def test_status_believes_a_machine_elsewhere_until_its_heartbeats_stop(tmp_path, age_s, status):
    write_run(tmp_path, 0, "convert", variant="recipe", status=None)
    store.publish(tmp_path)
    with hold_lease(tmp_path, "convert"):
        text = (tmp_path / "locks/convert.lease").read_text()
    path = tmp_path / "locks/convert.lease"
    path.write_text(re.sub(r"start=(\d+)", lambda match: f"start={int(match[1]) + (1 << 64)}", text))
    os.utime(path, (time.time() - age_s,) * 2)
    assert last_run(tmp_path) == status


def test_unreaped_process_is_dead(tmp_path):
    with start_python(RUN, tmp_path, WAITS, "record", "publish") as process:
        assert int(process.stdout.readline()) == process.pid
        assert last_run(tmp_path) == "running"
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert last_run(tmp_path) == "died"


def test_later_run_that_holds_the_lease_records_the_death(tmp_path):
    with start_python(RUN, tmp_path, WAITS, "record") as process:
        process.stdout.readline()
        process.kill()
    with open_run(tmp_path, "convert", "other") as run:
        run.announce()
        assert [status for status, _ in statuses(tmp_path)] == ["died", "running"]
    wait_for(lambda: not list(tmp_path.glob("locks/*.lease")))
    assert [status for status, _ in statuses(tmp_path)] == ["completed", "died", "running", "running"]


def test_death_is_described_without_a_place_too():
    assert describe_death("Fatal Python error: Bus error\n") == "its process crashed (Bus error)"
    assert describe_death("") == describe_death("half a li") == (
        "its process was killed, for example for lack of memory"
    )  # fmt: skip
