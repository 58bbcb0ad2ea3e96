"""One run of a stage at a time, and nobody waits for the dead."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from ctclip_model.errors import ConfigurationError
from tasks.run.lease import hold_lease
from tasks.settings import LIMITS

HOLD = """
import sys, time
from pathlib import Path
from tasks.run.lease import hold_lease
with hold_lease(Path(sys.argv[1]), "convert", "other"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_caller_waits_for_the_first(tmp_path):
    waited = []

    def second():
        with hold_lease(tmp_path, "convert", "second") as has_waited:
            waited.append(has_waited)

    with hold_lease(tmp_path, "convert", "first") as has_waited:
        assert not has_waited
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert not waited
    thread.join(timeout=5)
    assert waited == [True]


def test_another_stage_does_not_wait(tmp_path):
    with hold_lease(tmp_path, "convert", "a"), hold_lease(tmp_path, "label", "b") as has_waited:
        assert not has_waited


def test_lease_of_a_killed_process_is_taken_over_at_once(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    other.stdout.close()
    started = time.monotonic()
    with hold_lease(tmp_path, "convert", "mine"):
        assert time.monotonic() - started < 2
    assert not (tmp_path / "locks/convert.json").exists()


def test_lease_of_another_host_expires_without_a_heartbeat(tmp_path):
    (tmp_path / "locks").mkdir()
    other = {"host": "another-" + socket.gethostname(), "pid": 1, "run_id": "x", "heartbeat": time.time()}
    (tmp_path / "locks/convert.json").write_text(json.dumps(other))
    with pytest.raises(ConfigurationError, match="another-"):
        hold_lease(tmp_path, "convert", "mine", replace(LIMITS, lease_wait_s=0.1)).__enter__()
    with hold_lease(tmp_path, "convert", "mine", replace(LIMITS, lease_expiry_s=0.2)):
        pass


def test_heartbeat_keeps_the_lease_fresh(tmp_path):
    with hold_lease(tmp_path, "convert", "mine", replace(LIMITS, lease_heartbeat_s=0.05)):
        first = json.loads((tmp_path / "locks/convert.json").read_text())["heartbeat"]
        time.sleep(0.3)
        assert json.loads((tmp_path / "locks/convert.json").read_text())["heartbeat"] > first
