"""Publishing of record files into the warehouse. Stages publish; questions never do."""

from __future__ import annotations

import time
from pathlib import Path

from tasks.settings import LIMITS
from warehouse import store
from warehouse.fold import RECORDS_FOLDER


def publish(data_root: Path, *, from_scratch: bool = False) -> store.PublishResult:
    """Publishes all new record files: of stages on this machine, of GPU workers, and of crashed runs."""
    return store.publish(data_root, from_scratch=from_scratch)


def publish_leftovers(data_root: Path) -> None:
    """Publishes the records of killed runs, of GPU workers and of a lost warehouse, so that a stage's finders see them.

    A folder without records stays as it is.
    """
    if (data_root / RECORDS_FOLDER).is_dir():
        publish(data_root)


class PeriodicPublisher:
    """Publishes while a long stage runs, at most every `interval_s`."""

    def __init__(self, data_root: Path, interval_s: float = LIMITS.publish_interval_s) -> None:
        self.data_root = data_root
        self.interval_s = interval_s
        self.last = time.monotonic()

    def publish_if_due(self) -> None:
        if time.monotonic() - self.last >= self.interval_s:
            publish(self.data_root)
            self.last = time.monotonic()
