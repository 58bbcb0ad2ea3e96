"""Record files: rows in `records/<table>/<run_id>-<n>.parquet`, which the warehouse is folded from."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.files import whole_file

Rows: TypeAlias = "Sequence[Mapping[str, Any]] | pa.Table"

TIME_FORMAT = "%Y%m%dT%H%M%S%f"
TIME_OF_RUN = re.compile(r"\d{8}T\d{12}")
MAP_COLUMNS = dict.fromkeys(("metadata", "parts"), pa.map_(pa.string(), pa.string()))  # else structs


def new_run_id(data_root: Path) -> str:
    """New identifier of a run. It holds the time (UTC), and sorts after each recorded run, whatever the clock says."""
    now = datetime.now(UTC)
    recorded = (TIME_OF_RUN.match(path.name) for path in (data_root / "records" / "runs").glob("[!.]*.parquet"))
    if newest := max((match[0] for match in recorded if match), default=None):
        with suppress(ValueError, OverflowError):  # a name of digits that are no time
            now = max(now, datetime.strptime(newest, TIME_FORMAT).replace(tzinfo=UTC) + timedelta(microseconds=1))
    return f"{now:{TIME_FORMAT}}-{secrets.token_hex(3)}"


class RecordWriter:
    """Writes the rows of one run, one atomically written file per call."""

    def __init__(self, data_root: Path, run_id: str) -> None:
        self.data_root = data_root
        self.run_id = run_id
        self.count_files = 0

    def write(self, table: str, rows: Rows) -> int:
        """Adds rows to a table's records, each stamped with the run_id, and returns their number."""
        arrow = rows if isinstance(rows, pa.Table) else _to_arrow(rows)
        if arrow.num_rows == 0:
            return 0
        if "run_id" not in arrow.column_names:
            arrow = arrow.append_column("run_id", pa.array([self.run_id] * arrow.num_rows, pa.string()))
        folder = self.data_root / "records" / table
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(arrow, folder / f"{self.run_id}-{self.count_files:06d}.parquet")
        self.count_files += 1
        return arrow.num_rows


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a table to a file, atomically."""
    with whole_file(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def _to_arrow(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    if not rows:
        return pa.table({})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows], MAP_COLUMNS.get(name)) for name in names})
