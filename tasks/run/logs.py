"""Log lines with the stage, run and item that they are about. This module alone sets up logging.

`CTCLIP_LOG` is `text` for lines or `json` for an object per line. Without it a shell shows warnings only, and a Prefect
worker logs as Prefect is configured.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from ctclip_model.errors import ConfigurationError

VARIABLE = "CTCLIP_LOG"
FORMATS = ("text", "json")
PROJECT_LOGGERS = ("flows", "tasks", "warehouse", "ctclip_model")
PREFECT_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")  # log lines of the stages' flows and tasks
FACTS = ("stage", "variant", "run_id", "item")

_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))


@contextmanager
def log_context(**facts: str) -> Iterator[None]:
    """Gives log lines within the block a `stage`, `variant`, `run_id` or `item`."""
    token = _CONTEXT.set({**_CONTEXT.get(), **facts})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


class WithLogContext:
    """Wraps a job function so that log lines on a Dask worker carry the run's stage, run_id and item."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function, self.facts = function, dict(_CONTEXT.get())

    def __call__(self, job: Any) -> Any:
        if is_log_requested():
            configure_logging()
        with log_context(**self.facts):
            return self.function(job)


def is_log_requested() -> bool:
    """True if `CTCLIP_LOG` asks for every line."""
    return bool(os.environ.get(VARIABLE))


def configure_logging() -> None:
    """Sends the lines of this project's loggers to stderr, in the format of `CTCLIP_LOG`, once."""
    chosen = os.environ.get(VARIABLE) or ("text" if os.environ.get("CTCLIP_DEBUG") else "")
    if chosen and chosen not in FORMATS:
        raise ConfigurationError(f"{VARIABLE} is {chosen!r}: choose {' or '.join(FORMATS)}")
    handler = ContextHandler()
    formatters = {
        "json": JsonFormatter(),
        "text": logging.Formatter(_TEXT),
        "": logging.Formatter("ctclip: %(message)s"),
    }
    handler.setFormatter(formatters[chosen])
    for name in (*PROJECT_LOGGERS, *(PREFECT_LOGGERS if is_log_requested() else ())):
        logger = logging.getLogger(name)
        logger.handlers = [other for other in logger.handlers if not isinstance(other, ContextHandler)]
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if chosen else logging.WARNING)
        logger.propagate = False


class ContextHandler(logging.StreamHandler):
    """Adds the facts of the log context to each record, except those that the line has as `extra`."""

    def handle(self, record: logging.LogRecord) -> bool:
        for name in FACTS:
            if not hasattr(record, name):
                setattr(record, name, _CONTEXT.get().get(name, "-"))
        return super().handle(record)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, known facts and an error's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        line |= {name: value for name in FACTS if (value := getattr(record, name, "-")) != "-"}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


_TEXT = "%(asctime)s %(levelname)-7s %(stage)s %(run_id)s %(item)s | %(message)s"
