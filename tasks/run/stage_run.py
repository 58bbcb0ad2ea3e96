"""One run of a stage: lease, records, rejects and rows in `runs`."""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ctclip_model.errors import BadItemError, ConfigurationError, LeaseLostError, StageFailedError
from tasks.run.code_version import code_version
from tasks.run.lease import Lease, hold_lease
from tasks.run.logs import log_context
from tasks.run.publish import PeriodicPublisher, publish
from tasks.run.records import RecordWriter, Rows, new_run_id
from tasks.run.watcher import watched
from tasks.settings import LIMITS, Limits
from warehouse import store

logger = logging.getLogger(__name__)

ORDERS = "orders"  # folder of the data root with the GPU work that stages ordered


class StageRun:
    """Run of a stage, through which its tasks write records. `open_run` makes it and holds the stage's lease."""

    def __init__(
        self, data_root: Path, stage: str, variant: str, run_id: str, *, parameters: Mapping[str, Any] | None = None,
        flow_run_id: str | None = None, limits: Limits = LIMITS, lease: Lease | None = None,
    ) -> None:  # fmt: skip
        self.data_root, self.stage, self.variant, self.run_id = data_root, stage, variant, run_id
        self.parameters, self.flow_run_id, self.limits = parameters or {}, flow_run_id, limits
        self.lease = lease
        self.records = RecordWriter(data_root, run_id)
        self.publisher = PeriodicPublisher(data_root, limits.publish_interval_s)
        self.started = time.monotonic()
        self.count_done = self.count_rejected = 0
        self.detail = ""
        self.is_announced = False

    def record(self, table: str, rows: Rows) -> int:
        """Writes rows to a table's records, after announcing the run, and returns their number."""
        self.check_lease()
        self.announce()
        return self.records.write(table, rows)

    def check_lease(self) -> None:
        """Raises `LeaseLostError` once another run has taken over the stage's lease."""
        if self.lease is not None:
            self.lease.check()

    def has_recorded(self, table: str, model_id: str) -> bool:
        """True if another attempt of this run has written rows of a model to a table's records."""
        paths = (self.data_root / "records" / table).glob(f"{self.run_id}-*.parquet")
        return any(model_id in pq.read_table(path, columns=["model_id"])["model_id"].to_pylist() for path in paths)

    def reject(self, error: BadItemError, *, fingerprint: str, is_permanent: bool = True) -> None:
        """Records one unusable item. Bad data stays rejected until its fingerprint changes."""
        self.reject_all([(error, fingerprint)], is_permanent=is_permanent)

    def reject_all(self, errors: Sequence[tuple[BadItemError, str]], *, is_permanent: bool = True) -> None:
        """Records unusable items, each as (error, fingerprint)."""
        now = datetime.now(UTC)
        for error, _ in errors[:10]:
            logger.warning("rejected %s", error, extra={"item": error.item})
        self.record(
            "rejects",
            [
                {
                    "stage": self.stage, "variant": self.variant, "item": error.item, "fingerprint": fingerprint,
                    "reason": error.reason, "detail": error.detail, "is_permanent": is_permanent, "rejected_at": now,
                }
                for error, fingerprint in errors
            ],
        )  # fmt: skip
        self.count_rejected += len(errors)

    def publish_if_due(self) -> None:
        """Publishes new records, at most once every `publish_interval_s`."""
        self.check_lease()
        self.publisher.publish_if_due()

    def announce(self) -> None:
        """Records the start of the run, once. A run without work is never announced and leaves no row."""
        if not self.is_announced:
            self.is_announced = True
            self._record_status("running")

    def finish(self, status: str, detail: str = "") -> None:
        """Records the end of an announced run."""
        if self.is_announced:
            self._record_status(status, detail)

    def check_reject_share(self) -> None:
        """Raises `StageFailedError` if so many items are rejected that the stage, and not the items, must be at fault.

        Counts the items of this run, and all items of the stage, so that a rerun with nothing left to try fails too.
        """
        key = {"stage": self.stage, "variant": self.variant}
        ((rejected, done),) = store.query(self.data_root, store.load_sql(__package__, "item_counts"), key)
        self.check_counts(self.count_rejected, self.count_done)
        self.check_counts(rejected, done)

    def check_counts(self, bad: int, good: int) -> None:
        """Raises `StageFailedError` if so many of these items are rejected that the stage must be at fault."""
        if bad > max(self.limits.rejects_tolerated, self.limits.reject_share * (bad + good)):
            raise StageFailedError(
                f"{self.stage}: {bad} of {bad + good} items are rejected, more than "
                f'{self.limits.reject_share:.0%}; see: ctclip sql "select * from open_rejects where '
                f"stage = '{self.stage}'\""
            )

    def summary(self) -> dict[str, Any]:
        """Result of the run, by name: identity, counts, detail and duration."""
        return {
            "stage": self.stage, "variant": self.variant, "run_id": self.run_id, "done": self.count_done,
            "rejected": self.count_rejected, "detail": self.detail,
            "duration_s": round(time.monotonic() - self.started, 2),
        }  # fmt: skip

    def _record_status(self, status: str, detail: str = "") -> None:
        self.check_lease()
        row = {
            "run_id": self.run_id, "status": status, "stage": self.stage, "variant": self.variant,
            "flow_run_id": self.flow_run_id, "host": socket.gethostname(),
            "parameters": json.dumps(self.parameters, default=str, sort_keys=True), "code_version": code_version(),
            "recorded_at": datetime.now(UTC), "duration_s": time.monotonic() - self.started,
            "count_done": self.count_done, "count_rejected": self.count_rejected, "detail": detail or self.detail,
        }  # fmt: skip
        self.records.write("runs", [row])


@contextmanager
def open_run(
    data_root: Path,
    stage: str,
    variant: str = "",
    *,
    parameters: Mapping[str, Any] | None = None,
    flow_run_id: str | None = None,
    limits: Limits = LIMITS,
) -> Iterator[StageRun]:
    """Opens a run of a stage: holds the stage's lease, and publishes records of dead runs before and its own after.

    An error is recorded as the run's end and raised. The death of this process is recorded too (`watcher.py`). Raises
    `StageFailedError` if too many items are rejected, and `LeaseLostError` if another run took over the lease.
    """
    data_root = data_root.resolve()
    data_root.mkdir(parents=True, exist_ok=True)
    with hold_lease(data_root, stage, limits) as lease:
        run_id = new_run_id(data_root)  # made within the lease, so that a later run has the greater run_id
        publish(data_root)
        if close_dead_runs(data_root, stage):
            publish(data_root)
        run = StageRun(
            data_root, stage, variant, run_id,
            parameters=parameters, flow_run_id=flow_run_id, limits=limits, lease=lease,
        )  # fmt: skip
        with watched(data_root, stage, variant, run_id), log_context(stage=stage, variant=variant, run_id=run_id):
            try:
                yield run
                if run.is_announced:  # a run without work has no records
                    publish(data_root)
                run.check_reject_share()
            except LeaseLostError:
                raise  # the run that took over the lease records that this one died
            except BaseException as error:
                run.announce()
                run.finish("failed", f"{type(error).__name__}: {error}"[:2000])
                publish(data_root)
                raise
            if run.is_announced:
                run.finish("completed")
                publish(data_root)


def close_dead_runs(data_root: Path, stage: str) -> bool:
    """Records that the stage's unfinished runs died, and withdraws their orders. Needs the stage's lease.

    Returns true if there was one.
    """
    dead = store.query(data_root, store.load_sql(__package__, "unfinished_runs"), {"stage": stage})
    for run_id, variant, host, version in dead:
        logger.warning("%s: run %s died before its end", stage, run_id)
        _close_run(data_root, run_id, stage=stage, variant=variant, host=host, code_version=version)
    return bool(dead)


def record_death(data_root: Path, stage: str, variant: str, run_id: str, detail: str) -> None:
    """Publishes the records of a run whose process on this machine died, and records its death.

    The lease of an unreaped process is free once it expires. A later run that holds the lease by then has recorded the
    death already.
    """
    limits = dataclasses.replace(LIMITS, lease_wait_s=2 * LIMITS.lease_expiry_s)
    try:
        with hold_lease(data_root, stage, limits):
            publish(data_root)
            ended = "select 1 from runs where run_id = ? and status <> 'running'"
            if not store.query(data_root, ended, [run_id]):
                facts = {"host": socket.gethostname(), "code_version": code_version(), "detail": detail}
                _close_run(data_root, run_id, stage=stage, variant=variant, **facts)
                publish(data_root)
    except ConfigurationError as error:
        logger.info("%s", error)


def _close_run(data_root: Path, run_id: str, **facts: str | None) -> None:
    writer = RecordWriter(data_root, run_id)
    writer.count_files = 999_999  # beyond the files of the run
    writer.write("runs", [{"run_id": run_id, "status": "died", "recorded_at": datetime.now(UTC)} | facts])
    for partial in (data_root / "records").glob(f"*/.{run_id}-*.tmp"):
        partial.unlink()
    for order in (data_root / ORDERS).glob(f"{run_id}.*"):
        order.unlink()  # its worker then stops
