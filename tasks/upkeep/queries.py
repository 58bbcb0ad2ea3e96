"""Read-only questions of the command line to the published warehouse. Imports no Prefect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctclip_model.errors import ConfigurationError
from ctclip_model.files import whole_file
from ctclip_model.models.entry_points import find_fault
from tasks.run.lease import is_held
from warehouse import store


def run_query(data_root: Path, query: str, parameters: Sequence[str]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Runs a person's SQL, or the saved query `@name` with `key=value` parameters. Returns column names and rows."""
    values = {}
    for parameter in parameters:
        name, separator, value = parameter.partition("=")
        if not separator:
            raise ConfigurationError(f"--param {parameter!r} is not key=value")
        values[name] = value
    sql = store.load_query(query[1:]) if query.startswith("@") else query
    texts = {name: _restore_letters(value) for name, value in values.items()}
    result = store.run_user_sql(data_root, _restore_letters(sql), texts or None)
    return result.columns, result.rows


def _restore_letters(argument: str) -> str:
    """Letters of an argument that arrived as surrogates of their bytes, as in a locale of ASCII."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def list_saved_queries() -> list[tuple[str, str]]:
    """Lists the saved queries as (@name, description)."""
    return [(f"@{name}", description) for name, description in store.list_queries().items()]


def read_status(data_root: Path, sql: str = "") -> tuple[list[str], list[tuple[Any, ...]]]:
    """Reads a row for each stage and variant: finished, pending and rejected items, and the last run.

    A run that recorded no end is `running` only if a live process holds the stage's lease. Otherwise it died.
    """
    columns, rows = run_query(data_root, sql or store.load_sql(__package__, "status"), [])
    (last,) = (column for column, name in enumerate(columns) if name in ("last_status", "last run"))
    return columns, [
        (*row[:last], "died", *row[last + 1 :]) if row[last] == "running" and not is_held(data_root, row[0]) else row
        for row in rows
    ]


def list_stale_models(data_root: Path, stage: str | None = None, variant: str | None = None) -> list[str]:
    """Describes each model whose training data has moved, of all trainings or of one stage's variant."""
    key = {"stage": stage, "variant": variant}
    return [line for (line,) in store.query(data_root, store.load_sql(__package__, "stale"), key)]


def list_warnings(data_root: Path, model_id: str | None = None) -> list[str]:
    """Describes each model, or one, whose training beat no baseline, or whose evaluation finds no more than chance."""
    return [line for (line,) in store.query(data_root, store.load_sql(__package__, "warnings"), {"model_id": model_id})]


def list_absent_encoders(data_root: Path) -> list[str]:
    """Says which encoders of other packages are not installed here, with the model of each."""
    rows = store.query(data_root, store.load_sql(__package__, "encoders"))
    return [
        f"{model_id}: {fault}"
        for model_id, encoder, package in rows
        if (fault := find_fault(encoder, package)) is not None
    ]


def list_notes(data_root: Path) -> list[str]:
    """Sentences about the ingested data: volumes without a file, missing splits, orientations other than LPS."""
    return [line for (line,) in store.query(data_root, store.load_sql(__package__, "notes"))]


def export_table(data_root: Path, table: str, path: Path, file_format: str) -> int:
    """Writes a table or view to a Parquet or CSV file and returns its number of rows.

    Raises `ConfigurationError` if the warehouse has no such table or view.
    """
    with store.read(data_root) as connection:
        known = {name for (name,) in connection.execute("select table_name from information_schema.tables").fetchall()}
        if table not in known:
            raise ConfigurationError(f"there is no table or view {table!r}; there are: {', '.join(sorted(known))}")
        relation = connection.table(table)
        with whole_file(path) as file:  # DuckDB writes by name, into the file that takes its place afterwards
            if file_format == "csv":
                relation.write_csv(file.name, header=True)
            else:
                relation.write_parquet(file.name, compression="zstd")
        (count,) = relation.count("*").fetchall()[0]
    return int(count)
