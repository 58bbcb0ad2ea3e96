"""Fold of record files into tables: new files, their loading, and the rows that they supersede.

A record file is `records/<table>/<run_id>-<n>.parquet` under the data root, written by one rename and never changed.
Rows are only ever added, so the order of the files does not matter. Within a group the rows of the greatest run_id are
current. Rows of any other run are superseded by the next greater run_id. A late file of an older run (a long training
that began before a conversion which has ended) joins the history and does not replace newer rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from ctclip_model.errors import WarehouseError
from warehouse.tables import TABLES, Table

RECORDS_FOLDER = "records"
RECORD_PATTERN = re.compile(r"(?P<run_id>.+)-(?P<number>\d+)\.parquet")
FILES_PER_INSERT = 500
SUPERSEDE = Path(__file__).parent / "supersede.sql"


@dataclass(frozen=True)
class RecordFile:
    """One record file; `path` is relative to the data root, with `/`."""

    path: str
    table: str
    run_id: str
    number: int


def list_records(data_root: Path) -> list[RecordFile]:
    """Lists every finished record file, by table, run and number.

    Raises `WarehouseError` for a folder of no known table, or a file that is not named after a run.
    """
    folder = data_root / RECORDS_FOLDER
    known = {table.name for table in TABLES}
    unknown = sorted(path.name for path in folder.glob("[!.]*") if path.name not in known)
    if unknown:
        raise WarehouseError(f"{folder / unknown[0]} is not a folder of records: there is no such table")
    return [file for table in TABLES for file in _list_table(folder / table.name, table.name)]


def load_records(connection: duckdb.DuckDBPyConnection, data_root: Path, files: list[RecordFile]) -> dict[str, int]:
    """Loads record files, marks superseded rows, and returns the number of loaded rows by table.

    Raises `WarehouseError` naming the file that is damaged, has rows of another run, or has a column that its table
    lacks.
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
    defaults = {row[0]: row[4] for row in described if row[4] is not None}
    count = 0
    for start in range(0, len(files), FILES_PER_INSERT):
        batch = files[start : start + FILES_PER_INSERT]
        facts = [_inspect(data_root, file, columns) for file in batch]
        paths = [escape_pattern(data_root / file.path) for file in batch]
        try:
            _insert(connection, table, paths, defaults)
        except duckdb.Error:
            for path in paths:  # one by one, to name the faulty file
                _try_alone(connection, table, path, defaults)
            raise
        connection.executemany("insert into record_files values (?, ?, ?, ?)", facts)
        count += sum(rows for _, _, rows, _ in facts)
    return count


def escape_pattern(path: Path) -> str:
    """The path as DuckDB takes it by its letters: to its readers of files, `*`, `?` and `[` are patterns."""
    return re.sub(r"([*?[])", r"[\1]", str(path))


def _inspect(data_root: Path, file: RecordFile, columns: set[str]) -> tuple[str, str, int, int]:
    """Checks a file's footer and columns, and returns its row of `record_files`."""
    import pyarrow as pa  # imported late: no reader needs it
    import pyarrow.parquet as pq

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


def _insert(connection: duckdb.DuckDBPyConnection, table: Table, paths: list[str], defaults: Mapping[str, str]) -> None:
    """Inserts the rows of record files. A column that some of the files lack has its default in their rows."""
    source = "read_parquet(?, union_by_name = true, hive_partitioning = false, filename = 'record_path')"
    run_of_file = r"regexp_extract(record_path, '([^/\\]+)-\d+\.parquet$', 1)"
    foreign = connection.execute(
        f"select record_path, run_id from {source} where run_id is distinct from {run_of_file} limit 1", [paths]
    ).fetchone()
    if foreign:
        raise WarehouseError(f"record file {foreign[0]} holds a row of another run, {foreign[1]}")
    present = {row[0] for row in connection.execute(f"describe select * from {source}", [paths]).fetchall()}
    filled = ", ".join(f"coalesce({name}, {value}) as {name}" for name, value in defaults.items() if name in present)
    columns = f"* exclude (record_path) replace ({filled})" if filled else "* exclude (record_path)"
    connection.execute(f"insert into {table.name} by name select {columns} from {source}", [paths])


def _try_alone(connection: duckdb.DuckDBPyConnection, table: Table, path: str, defaults: Mapping[str, str]) -> None:
    connection.begin()
    try:
        _insert(connection, table, [path], defaults)
    except duckdb.Error as error:
        raise WarehouseError(f"record file {path} cannot be loaded into {table.name}: {error}") from error
    finally:
        connection.rollback()


def _supersede(connection: duckdb.DuckDBPyConnection, table: Table, run_ids: list[str]) -> None:
    """Sets `superseded_by_run` afresh in every group that has a row of one of the runs."""
    group = ", ".join(table.group)
    same = " and ".join(f"{table.name}.{column} is not distinct from other.{column}" for column in table.group)
    sql = SUPERSEDE.read_text("utf-8").format(table=table.name, group=group, same=same)
    connection.execute(sql, [run_ids])
