"""What tables, views and columns mean, said in the warehouse's file itself, by `comment on`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from ctclip_model.data.abnormalities import ABNORMALITIES

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
    columns = connection.execute(
        "select table_name, column_name, comment from duckdb_columns() where not internal"
    ).fetchall()
    meanings = ((table, column, describe_column(table, column), comment) for table, column, comment in columns)
    statements = [
        f'comment on column {table}."{column}" is {quoted(meaning)}'
        for table, column, meaning, comment in meanings
        if meaning and meaning != comment
    ]
    connection.execute(";".join(statements))


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
    read: dict[str, dict[str, Any]] = tomllib.loads(COLUMNS_FILE.read_text())
    labels = {name.lower().replace(" ", "_"): f"1 with {name.lower()}, 0 without" for name in ABNORMALITIES}
    read["only"]["labels_wide"] = labels
    return read
