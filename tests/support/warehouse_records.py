"""Record files for the tests of the warehouse, written by the stages' own writer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ctclip_model.data.abnormalities import ABNORMALITIES
from tasks.run.records import RecordWriter
from warehouse import store

RUNS = tuple(f"20261123T19530000000{n}-abc{n:03d}" for n in range(10))


def write_run(
    data_root: Path,
    run: int,
    stage: str = "convert",
    *,
    variant: str = "",
    status: str | None = "completed",
    **tables: Any,
) -> None:
    """Records a run that starts, writes `tables` ({table: rows}) and, unless `status` is None, ends."""
    writer = RecordWriter(data_root, RUNS[run])
    writer.write("runs", [_status_row(run, "running", stage, variant)])
    for table, rows in tables.items():
        writer.write(table, rows)
    if status:
        writer.write("runs", [_status_row(run, status, stage, variant)])


def label_rows(scans: Sequence[str], labels: np.ndarray) -> list[dict[str, Any]]:
    """Rows of `published_labels` of (scans, 18) zeros and ones."""
    return [
        {"scan_id": scan, "abnormality": name, "value": int(value)}
        for scan, row in zip(scans, labels, strict=True)
        for name, value in zip(ABNORMALITIES, row, strict=True)
    ]


def query(data_root: Path, sql: str) -> list[tuple[Any, ...]]:
    with store.read(data_root) as connection:
        return connection.execute(sql).fetchall()


def _status_row(run: int, status: str, stage: str, variant: str) -> dict[str, Any]:
    recorded_at = datetime(2026, 11, 23, 19, run, 0 if status == "running" else 30, tzinfo=UTC)
    return {"run_id": RUNS[run], "status": status, "stage": stage, "variant": variant, "recorded_at": recorded_at}
