"""The fold of record files into tables: which are new, how they load, and which rows they supersede.

A record file is `records/<table>/<run_id>-<n>.parquet` under the data root, written whole by one rename and never
changed. Rows are only ever added, so the order in which publishes meet the files cannot matter: within a group the
rows of the greatest run_id are current, and those of any other run are superseded by the next greater one. So a file
of an older run that arrives late (a long training that began before a conversion which has ended) does not replace
what a newer run wrote: it takes its place in the history, as if it had been there in time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.errors import WarehouseError
from warehouse.tables import TABLES, Table

RECORDS_FOLDER = "records"
RECORD_PATTERN = re.compile(r"(?P<run_id>.+)-(?P<number>\d+)\.parquet")
FILES_PER_INSERT = 500


@dataclass(frozen=True)
class RecordFile:
    """One record file; `path` is relative to the data root, with `/`."""

    path: str
    table: str
    run_id: str
    number: int


def list_records(data_root: Path) -> list[RecordFile]:
    """Every finished record file, by table, run and number; raises `WarehouseError` on one of no known table or run."""
    folder = data_root / RECORDS_FOLDER
    known = {table.name for table in TABLES}
    strangers = sorted(path.name for path in folder.glob("[!.]*") if path.name not in known)
    if strangers:
        raise WarehouseError(f"{folder / strangers[0]} is not a folder of records: there is no such table")
    return [file for table in TABLES for file in _list_table(folder / table.name, table.name)]


def load_records(connection: duckdb.DuckDBPyConnection, data_root: Path, files: list[RecordFile]) -> dict[str, int]:
    """Loads record files and marks what they supersede; returns the rows loaded by table.

    Raises `WarehouseError` naming the file that is damaged, of another run than its name says, or has a column that
    its table lacks.
    """
    loaded = {}
    for table in TABLES:
        mine = [file for file in files if file.table == table.name]
        if mine:
            loaded[table.name] = _load_table(connection, data_root, table, mine)
            if table.group:
                _supersede(connection, table, sorted({file.run_id for file in mine}))
    return loaded


def _list_table(folder: Path, table: str) -> Iterator[RecordFile]:
    found = []
    for path in folder.glob("[!.]*.parquet"):
        match = RECORD_PATTERN.fullmatch(path.name)
        if match is None:
            raise WarehouseError(f"{path} is not named <run_id>-<n>.parquet")
        found.append((match["run_id"], int(match["number"]), path.name))
    for run_id, number, name in sorted(found):
        yield RecordFile(f"{RECORDS_FOLDER}/{table}/{name}", table, run_id, number)


def _load_table(connection: duckdb.DuckDBPyConnection, data_root: Path, table: Table, files: list[RecordFile]) -> int:
    described = connection.execute(f"describe {table.name}").fetchall()
    columns = {row[0] for row in described}
    count = 0
    for start in range(0, len(files), FILES_PER_INSERT):
        batch = files[start : start + FILES_PER_INSERT]
        facts = [_inspect(data_root, file, columns) for file in batch]
        paths = [str(data_root / file.path) for file in batch]
        try:
            _insert(connection, table, paths)
        except duckdb.Error:
            for path in paths:  # which of them is it?
                _try_alone(connection, table, path)
            raise
        connection.executemany("insert into record_files values (?, ?, ?, ?)", facts)
        count += sum(rows for _, _, rows, _ in facts)
    return count


def _inspect(data_root: Path, file: RecordFile, columns: set[str]) -> tuple[str, str, int, int]:
    """The file's row of `record_files`, once its footer reads well and its columns are known."""
    path = data_root / file.path
    try:
        metadata = pq.read_metadata(path)
        names = metadata.schema.to_arrow_schema().names
    except (pa.ArrowException, OSError) as error:
        raise WarehouseError(f"record file {path} is damaged: {error}") from error
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise WarehouseError(f"record file {path} has a column {unknown[0]!r}, which table {file.table} lacks")
    if "run_id" not in names:
        raise WarehouseError(f"record file {path} has no column 'run_id'")
    return file.path, file.table, metadata.num_rows, path.stat().st_size


def _insert(connection: duckdb.DuckDBPyConnection, table: Table, paths: list[str]) -> None:
    source = "read_parquet(?, union_by_name = true, hive_partitioning = false, filename = 'record_path')"
    run_of_file = r"regexp_extract(record_path, '([^/\\]+)-\d+\.parquet$', 1)"
    stray = connection.execute(
        f"select record_path, run_id from {source} where run_id is distinct from {run_of_file} limit 1", [paths]
    ).fetchone()
    if stray:
        raise WarehouseError(f"record file {stray[0]} holds a row of another run, {stray[1]}")
    connection.execute(f"insert into {table.name} by name select * exclude (record_path) from {source}", [paths])


def _try_alone(connection: duckdb.DuckDBPyConnection, table: Table, path: str) -> None:
    connection.begin()
    try:
        _insert(connection, table, [path])
    except duckdb.Error as error:
        raise WarehouseError(f"record file {path} cannot be loaded into {table.name}: {error}") from error
    finally:
        connection.rollback()


def _supersede(connection: duckdb.DuckDBPyConnection, table: Table, run_ids: list[str]) -> None:
    """Sets `superseded_by_run` afresh in every group that has a row of one of the runs."""
    group = ", ".join(table.group)
    same = " and ".join(f"{table.name}.{column} is not distinct from other.{column}" for column in table.group)
    connection.execute(
        f"""
        with touched as (select distinct {group} from {table.name} where run_id in (select unnest(?))),
        runs as (select distinct {group}, run_id from {table.name} semi join touched as other on {same}),
        other as (select *, lead(run_id) over (partition by {group} order by run_id) as next_run from runs)
        update {table.name} set superseded_by_run = other.next_run from other
        where {same} and {table.name}.run_id = other.run_id
            and {table.name}.superseded_by_run is distinct from other.next_run
        """,
        [run_ids],
    )
