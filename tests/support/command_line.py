"""`ctclip` in this process, or in a process of its own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from support.paths import ROOT
from tasks.run.logs import PREFECT_LOGGERS, PROJECT_LOGGERS

TERMINAL = {"NO_COLOR": "1", "COLUMNS": "80"}


@dataclass(frozen=True)
class Finished:
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


def run_ctclip(*arguments: str | Path, **environment: str) -> Finished:
    """Runs a command in this process. Environment and loggers are afterwards as before."""
    from flows.cli import run

    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, TERMINAL | environment), patch.object(sys, "argv", ["ctclip", *map(str, arguments)]),
        keep_loggers(), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr),
    ):  # fmt: skip
        code = run()
    return Finished(code, stdout.getvalue(), stderr.getvalue())


def run_ctclip_process(*arguments: str | Path, **environment: str) -> Finished:
    """Runs a command in a process of its own, as a shell does."""
    done = subprocess.run(
        [sys.executable, "-m", "flows", *map(str, arguments)],
        cwd=ROOT, env=os.environ | TERMINAL | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return Finished(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def keep_loggers() -> Iterator[None]:
    """Undoes afterwards what is done to the project's loggers."""
    loggers = [logging.getLogger(name) for name in (*PROJECT_LOGGERS, *PREFECT_LOGGERS)]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    try:
        yield
    finally:
        for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
            one.handlers, one.level, one.propagate = handlers, level, propagate
