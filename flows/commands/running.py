"""Runs a flow for a command, in this process, with its progress and its summary on the screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

from flows.display import PlainReporter, RichReporter, print_json, print_summaries
from tasks.run.collector import pausing_collector
from tasks.run.logs import is_log_requested
from tasks.run.progress import REPORTER


def run_flow(name: str, as_json: bool, **parameters: Any) -> None:
    """Runs the flow of a name with its parameters and prints the summaries of its runs.

    The index page alone is written without Prefect where no server is named: starting one takes seconds.
    """
    from tasks.upkeep.own_server import ensure_server
    from tasks.upkeep.prefect_server import find_api_url

    _silence_prefect()
    name = name.replace("-", "_")
    is_index = name == "report" and parameters["index"]
    is_alone = is_index and find_api_url() is None
    if not is_alone:
        ensure_server()
    with pausing_collector():
        flow = getattr(import_module(f"flows.{name}"), name)
    with showing_progress():
        result = flow.fn(**parameters) if is_alone else flow(**parameters)
    if as_json:
        print_json(result)
    else:
        print_summaries(result if isinstance(result, list) else [result])


@contextmanager
def showing_progress() -> Iterator[None]:
    """Shows progress on stderr: bars on a terminal, else plain lines, or log lines if `CTCLIP_LOG` asks for them."""
    if is_log_requested():
        yield
        return
    with RichReporter() if sys.stderr.isatty() else nullcontext(PlainReporter()) as reporter:
        token = REPORTER.set(reporter)
        try:
            yield
        finally:
            REPORTER.reset(token)


def _silence_prefect() -> None:
    """Hides Prefect's own log, which would break up the progress bar. `--debug` shows it."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")  # a server that is silent for 15 s is lost
    if not os.environ.get("CTCLIP_DEBUG"):
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "ERROR")
        os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
