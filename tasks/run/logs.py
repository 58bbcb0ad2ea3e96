"""Log lines that say which stage's run, and which item, they are about: the one place where logging is set up.

`CTCLIP_LOG` is `text`, a line each, or `json`, an object each. Without it a person at a shell sees warnings alone, and
a Prefect worker logs as Prefect is told to.
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
PREFECT_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")  # what the stages' flows say by its own loggers
FACTS = ("stage", "variant", "run_id", "item")

_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))


@contextmanager
def log_context(**facts: str) -> Iterator[None]:
    """Lines that are logged meanwhile are about this `stage`, `variant`, `run_id` or `item`."""
    token = _CONTEXT.set({**_CONTEXT.get(), **facts})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


class WithLogContext:
    """A function of one job whose log lines, in whatever process, are about what lines are about where it is made."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function, self.facts = function, dict(_CONTEXT.get())

    def __call__(self, job: Any) -> Any:
        if is_log_requested():
            configure_logging()
        with log_context(**self.facts):
            return self.function(job)


def is_log_requested() -> bool:
    """Whether somebody, who need not be at a screen, wants every line."""
    return bool(os.environ.get(VARIABLE))


def configure_logging() -> None:
    """Sends the lines of this project's loggers to stderr, as `CTCLIP_LOG` says; calling it again is harmless."""
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
    """Gives each record the facts that hold where it was logged, unless the line brings its own as `extra`."""

    def handle(self, record: logging.LogRecord) -> bool:
        for name in FACTS:
            if not hasattr(record, name):
                setattr(record, name, _CONTEXT.get().get(name, "-"))
        return super().handle(record)


class JsonFormatter(logging.Formatter):
    """A line, one JSON object: time, level, logger, message, what is known of `FACTS`, and an error's traceback."""

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
