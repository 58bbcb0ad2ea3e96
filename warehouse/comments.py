"""What tables, views and columns mean, said in the warehouse's file itself, by `comment on`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

COLUMNS_FILE = Path(__file__).parent / "columns.toml"
OWN_TABLES = {  # that no stage writes
    "migrations": "a migration that this file has had",
    "record_files": "a record file that has been loaded",
    "view_files": "a view of this file and the checksum of its definition",
    "published_results": "model x data set x metric, as printed in the literature",
}


def comment_columns(connection: duckdb.DuckDBPyConnection) -> None:
    """Gives every table that no stage writes, and every column of every table and view, its comment."""
    for table, grain in OWN_TABLES.items():
        connection.execute(f"comment on table {table} is {quoted(grain)}")
    columns = connection.execute("select table_name, column_name from duckdb_columns() where not internal").fetchall()
    for table, column in columns:
        meaning = describe_column(table, column)
        if meaning:
            connection.execute(f'comment on column {table}."{column}" is {quoted(meaning)}')


def describe_column(table: str, column: str) -> str:
    """What a column means, or nothing if `columns.toml` does not say; a `current_` view's are its table's."""
    own = glossary()["only"].get(table.removeprefix("current_"), {})
    return str(own.get(column) or glossary()["columns"].get(column, ""))


def quoted(text: str) -> str:
    """A text as an SQL literal, for statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


@cache
def glossary() -> dict[str, dict[str, Any]]:
    """Meanings by column name under `columns`, and under `only` by table or view for those of their own."""
    return tomllib.loads(COLUMNS_FILE.read_text())
