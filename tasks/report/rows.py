"""Rows of the warehouse as the pages take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb

Row = dict[str, Any]


def read_rows(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, Any] | None = None
) -> list[Row]:
    """Rows of a query by the names of its columns. Parameters that the query does not name are left out."""
    answer = execute(connection, sql, parameters)
    columns = [column[0] for column in answer.description or ()]
    return [dict(zip(columns, row, strict=True)) for row in answer.fetchall()]


def execute(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, Any] | None = None
) -> duckdb.DuckDBPyConnection:
    """Runs a query with those of the parameters that it names."""
    return connection.execute(sql, {name: value for name, value in (parameters or {}).items() if f"${name}" in sql})
