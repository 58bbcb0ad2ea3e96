"""Python programs in processes of their own. They import the project and `support` as tests do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support.paths import ROOT

SEARCHED = (ROOT, ROOT / "tests")
HEEDING_SIGINT = ("env", "--default-signal=INT")  # a shell's background jobs ignore it, and Prefect ends workers by it


def start_python(
    code: str, *arguments: str | Path, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Starts `python -c code arguments` with its output in pipes; options are those of `subprocess.Popen`."""
    paths = os.pathsep.join(map(str, SEARCHED))
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths} | (environment or {}), **piped | options,
    )  # fmt: skip


def run_python(code: str, *arguments: str | Path, timeout_s: float = 120, **options: Any) -> str:
    """Output of a program. A program that fails is an assertion that shows its errors."""
    with start_python(code, *arguments, **options) as process:
        output, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output + errors
    return output


def kill_after(process: subprocess.Popen[str], delay_s: float) -> None:
    """Kills a process and all others of its session, unless it ends before. A process that fails is an assertion."""
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode in (0, -signal.SIGKILL)


def wait_for(condition: Callable[[], Any], timeout_s: float = 600, interval_s: float = 0.01) -> None:
    """Returns as soon as the condition holds. Fails where it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {timeout_s:g} s"
        time.sleep(interval_s)
