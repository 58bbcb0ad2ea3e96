"""Progress of stages: log lines by default, or the display that the caller installs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Protocol

RATE_UNITS = ((1_000_000, "M"), (1_000, "k"))

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Display of progress. A stage is open while its flow runs, and within counts one piece of work or several."""

    def open(self, stage: str) -> None: ...
    def start(self, work: str, total: int, unit: str) -> None: ...
    def update(self, work: str, done: int, note: str) -> None: ...
    def end(self, work: str) -> None: ...
    def close(self, stage: str) -> None: ...


class LogReporter:
    """Lines at a stage's begin, every ten seconds with items done, rate and time left, and at its end."""

    def __init__(self, interval_s: float = 10.0) -> None:
        self.interval_s = interval_s
        self.started = self.last = time.monotonic()
        self.done, self.total, self.unit = 0, 0, ""

    def say(self, line: str) -> None:
        logger.info(line)

    def open(self, stage: str) -> None:
        self.say(f"{stage}: begins")

    def start(self, work: str, total: int, unit: str) -> None:
        self.started = self.last = time.monotonic()
        self.done, self.total, self.unit = 0, total, unit

    def update(self, work: str, done: int, note: str) -> None:
        self.done, now = done, time.monotonic()
        self.total = max(self.total, done)  # a total may be an estimate
        if now - self.last < self.interval_s:
            return
        self.last = now
        rate = done / (now - self.started)
        left = f"{timedelta(seconds=round((self.total - done) / rate))} left" if rate else "no rate yet"
        self.say(f"{work}: {done} of {self.total} {self.unit}, {format_rate(rate)}, {left} {note}".rstrip())

    def end(self, work: str) -> None:
        took = timedelta(seconds=round(time.monotonic() - self.started))
        self.say(f"{work}: {self.done} of {self.total} {self.unit} in {took}")

    def close(self, stage: str) -> None:
        pass


def format_rate(per_second: float) -> str:
    """A rate with three digits: 0.125/s, 12.5/s, 1.25k/s, 38M/s."""
    size, suffix = next((one for one in RATE_UNITS if per_second >= one[0]), (1, ""))
    return f"{float(f'{per_second / size:.3g}'):g}{suffix}/s"


REPORTER: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


class Progress:
    """Counts one piece of work for a reporter."""

    def __init__(self, reporter: Reporter, work: str) -> None:
        self.reporter, self.work, self.done = reporter, work, 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.reporter.update(self.work, self.done, note)


@contextmanager
def show_stage(stage: str) -> Iterator[None]:
    """Says that a stage runs, and that it is done if the block ends without an error."""
    reporter = REPORTER.get() or LogReporter()
    reporter.open(stage)
    yield
    reporter.close(stage)


@contextmanager
def show_progress(work: str, total: int, unit: str) -> Iterator[Progress]:
    """Reports the progress of `total` units of work within the block."""
    reporter = REPORTER.get() or LogReporter()
    reporter.start(work, total, unit)
    try:
        yield Progress(reporter, work)
    finally:
        reporter.end(work)


def describe_duration(seconds: float) -> str:
    """A duration in its two largest units.

    >>> describe_duration(3725)
    '1 h 02 min'
    """
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
