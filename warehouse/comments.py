"""Meanings of tables, views and columns, written into the warehouse by `comment on`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from ctclip_model.data.abnormalities import ABNORMALITIES

COLUMNS_FILE = Path(__file__).parent / "columns.toml"
LABEL_COLUMNS = {name: name.lower().replace(" ", "_") for name in ABNORMALITIES}  # columns of labels_wide
OWN_TABLES = {  # tables that no stage writes
    "migrations": "migration applied to this file",
    "record_files": "record file loaded into this file",
    "stale_counts": "model with a recipe and recorded samples, counted when a publish loads what it depends on",
    "view_files": "view of this file, with the checksum of its definition",
    "published_results": "model x data set x metric, as printed in the literature",
}


def comment_columns(connection: duckdb.DuckDBPyConnection) -> None:
    """Comments every column of every table and view, and the tables that no stage writes."""
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
    """Meaning of a column, or "" if `columns.toml` has none. The columns of `current_<table>` are the table's."""
    own = glossary()["only"].get(table.removeprefix("current_"), {})
    return str(own.get(column) or glossary()["columns"].get(column, ""))


def quoted(text: str) -> str:
    """SQL literal of a text, for statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


@cache
def glossary() -> dict[str, dict[str, Any]]:
    """Meanings by column name (`columns`), and by table or view where they differ (`only`)."""
    read: dict[str, dict[str, Any]] = tomllib.loads(COLUMNS_FILE.read_text("utf-8"))
    read["only"]["labels_wide"] = {
        column: f"1 with {name.lower()}, 0 without" for name, column in LABEL_COLUMNS.items()
    }
    return read
