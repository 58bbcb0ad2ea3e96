"""Progress of a stage: log lines by default, or the display that the caller installs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Display of progress."""

    def start(self, stage: str, total: int, unit: str) -> None: ...
    def update(self, stage: str, done: int, note: str) -> None: ...
    def end(self, stage: str) -> None: ...


class LogReporter:
    """Log line every ten seconds: items done, rate, time left."""

    def __init__(self, interval_s: float = 10.0) -> None:
        self.interval_s = interval_s
        self.started = self.last = time.monotonic()
        self.total, self.unit = 0, ""

    def start(self, stage: str, total: int, unit: str) -> None:
        self.started = self.last = time.monotonic()
        self.total, self.unit = total, unit

    def update(self, stage: str, done: int, note: str) -> None:
        now = time.monotonic()
        if now - self.last < self.interval_s:
            return
        self.last = now
        rate = done / (now - self.started)
        left = (self.total - done) / rate if rate else float("inf")
        logger.info("%s: %d of %d %s, %.1f/s, %.0f s left %s", stage, done, self.total, self.unit, rate, left, note)

    def end(self, stage: str) -> None:
        pass


REPORTER: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


class Progress:
    """Counts the work of one stage for a reporter."""

    def __init__(self, reporter: Reporter, stage: str) -> None:
        self.reporter, self.stage, self.done = reporter, stage, 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.reporter.update(self.stage, self.done, note)


@contextmanager
def show_progress(stage: str, total: int, unit: str) -> Iterator[Progress]:
    """Reports the progress of `total` units of work within the block."""
    reporter = REPORTER.get() or LogReporter()
    reporter.start(stage, total, unit)
    try:
        yield Progress(reporter, stage)
    finally:
        reporter.end(stage)
