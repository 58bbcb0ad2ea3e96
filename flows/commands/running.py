"""Runs a flow for a command: in this process, with its progress shown and its summary printed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flows.display import RichReporter, print_json, print_summaries
from tasks.run.logs import is_asked_for
from tasks.run.progress import REPORTER


def run_flow(name: str, as_json: bool, **parameters: Any) -> Any:
    """Runs the flow of that name in this process, showing its progress, and prints what it did."""
    _quieten_prefect()
    from importlib import import_module

    function = getattr(import_module(f"flows.{name}"), name)
    with showing_progress():
        result = function(**{key: value for key, value in parameters.items() if value is not None})
    summaries = result if isinstance(result, list) else [result]
    print_json(result) if as_json else print_summaries(summaries)
    return result


@contextmanager
def showing_progress() -> Iterator[None]:
    """Progress goes to stderr meanwhile: as a bar, or, where `CTCLIP_LOG` asks for log lines, as such."""
    if is_asked_for():
        yield
        return
    with RichReporter() as reporter:
        token = REPORTER.set(reporter)
        try:
            yield
        finally:
            REPORTER.reset(token)


def _quieten_prefect() -> None:
    """Prefect's own console log would stand between a person and the progress; `--debug` shows it."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    if not os.environ.get("CTCLIP_DEBUG"):
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "ERROR")
        os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
