"""Schema of the warehouse: migrations, views and checks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import duckdb

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import CheckFailedError, WarehouseError
from ctclip_model.evaluation.protocols import NAMED_PROTOCOLS
from ctclip_model.stages import PIPELINE
from warehouse.comments import COLUMNS_FILE, LABEL_COLUMNS, comment_columns, quoted
from warehouse.tables import TABLES

HERE = Path(__file__).parent
MIGRATION_PATTERN = re.compile(r"(\d{4})_\w+")
COUNTED = HERE / "counted" / "stale_counts.sql"  # query of the table of its name, made anew by a publish
SHOWN_ROWS = 5  # rows of a failed check in its error message


def migrate(connection: duckdb.DuckDBPyConnection, folder: Path = HERE / "migrations") -> bool:
    """Applies the migrations that the file lacks, in order, each in a transaction. Returns true if it lacked any.

    Raises `WarehouseError` if an applied migration has changed since, or if the file knows one that the code lacks.
    """
    connection.execute("create table if not exists migrations (number integer, name varchar, sha256 varchar)")
    pending = pending_migrations(connection, folder)
    for number, path in pending.items():
        text = path.read_text("utf-8")
        connection.begin()
        try:
            connection.execute(text)
            connection.execute("insert into migrations values (?, ?, ?)", [number, path.stem, _sha256(text)])
        except duckdb.Error as error:
            connection.rollback()
            raise WarehouseError(f"migration {path.name} failed: {error}") from error
        connection.commit()
    return bool(pending)


def pending_migrations(connection: duckdb.DuckDBPyConnection, folder: Path = HERE / "migrations") -> dict[int, Path]:
    """Migrations that a file lacks, by number. Raises as `migrate` does."""
    files = {int(_number(path)): path for path in sorted(folder.glob("*.sql"))}
    rows = connection.execute("select number, name, sha256 from migrations order by number").fetchall()
    for number, name, sha256 in rows:
        path = files.pop(number, None)
        if path is None:
            raise WarehouseError(f"the warehouse is newer than this code: it has migration {name}; update the code")
        if _sha256(path.read_text("utf-8")) != sha256:
            raise WarehouseError(f"migration {path.name} has changed since it was applied; add a new one instead")
    return files


def view_definitions(folder: Path = HERE / "views") -> dict[str, str]:
    """Names and queries of all views, in an order in which they can be created.

    A file in `views/` is a view of the file's name. Its first line is a comment that states the grain. Generated here:
    `current_<table>` (rows that no run has superseded or withdrawn), `pending_<stage>`, `stages`, `named_protocols` and
    `labels_wide`.
    """
    views = {path.stem: path.read_text("utf-8") for path in folder.glob("*.sql")}
    for table in TABLES:
        if table.group:
            kept = " and is_withdrawn is not true" if table.has_withdrawn else ""
            views[f"current_{table.name}"] = (
                f"-- {table.grain}: latest row\n"
                f"select * exclude (superseded_by_run) from {table.name} where superseded_by_run is null{kept}"
            )
    for stage in PIPELINE.values():
        if stage.is_planned:
            views[f"pending_{stage.name.replace('-', '_')}"] = (
                f"-- variant x item that a rerun of `{stage.name}` would do\n"
                f"select variant, item, fingerprint from pending where stage = '{stage.name}'"
            )
    rows = ", ".join(f"('{stage.name}', {index}, {stage.trains})" for index, stage in enumerate(PIPELINE.values(), 1))
    views["stages"] = f"-- stage\nselect * from (values {rows}) as stages(stage, position, trains)"
    named = ", ".join(f"('{name}', '{one.unit}', {one.is_retrieval})" for name, one in NAMED_PROTOCOLS.items())
    views["named_protocols"] = (
        f"-- named protocol of the literature\nselect * from (values {named}) as named(protocol, unit, is_retrieval)"
    )
    views["labels_wide"] = _labels_wide()
    words = {name: _words(text) for name, text in views.items()}
    try:
        order = TopologicalSorter(
            {name: words[name] & (views.keys() - {name}) for name in sorted(views)}
        ).static_order()
        return {name: views[name] for name in order}
    except CycleError as error:
        raise WarehouseError(f"views refer to each other in a circle: {error.args[1]}") from error


def _words(text: str) -> set[str]:
    """Words of SQL without its comments, names of tables and views among them."""
    return set(re.findall(r"\w+", re.sub(r"--.*", "", text)))


def _labels_wide() -> str:
    """Query of `labels_wide`: a column for each abnormality, in the order of `ABNORMALITIES`."""
    columns = ", ".join(
        f"max(value) filter (abnormality = {quoted(name)}) as {column}" for name, column in LABEL_COLUMNS.items()
    )
    return (
        f"-- scan x labeller: the {len(ABNORMALITIES)} labels side by side, null if unknown. "
        "'published' is a labeller too\n"
        f"select scan_id, split, labeller_id, {columns} from all_labels "
        "where label_set = 'ct-rate-18' group by scan_id, split, labeller_id"
    )


def create_views(connection: duckdb.DuckDBPyConnection) -> None:
    """Drops all views of the file and creates those of the code, with grains and meanings as comments."""
    names = connection.execute("select view_name from duckdb_views() where not internal").fetchall()
    connection.begin()
    for (name,) in names:
        connection.execute(f'drop view if exists "{name}"')
    connection.execute("delete from view_files")
    for name, text in view_definitions().items():
        try:
            connection.execute(f"create view {name} as {text}")
        except duckdb.Error as error:
            connection.rollback()
            raise WarehouseError(f"view {name} cannot be made: {error}") from error
        connection.execute(f"comment on view {name} is {quoted(describe_query(text))}")
        connection.execute("insert into view_files values (?, ?)", [name, _sha256(text)])
    for table in TABLES:
        connection.execute(f"comment on table {table.name} is {quoted(table.grain)}")
    comment_columns(connection)
    for name, text in _other_files().items():
        connection.execute("insert into view_files values (?, ?)", [name, _sha256(text)])
    connection.commit()


def count_stale(connection: duckdb.DuckDBPyConnection) -> None:
    """Counts the moved samples of every model anew. Views must be current."""
    connection.begin()
    connection.execute("delete from stale_counts")
    if connection.execute("select 1 from current_model_samples limit 1").fetchone():
        connection.execute(f"insert into stale_counts by name {COUNTED.read_text('utf-8')}")
    connection.commit()


@cache
def counted_tables() -> frozenset[str]:
    """Tables that `count_stale` reads, through views or directly."""
    return _find_tables(COUNTED.read_text("utf-8"), view_definitions())


def _find_tables(text: str, views: Mapping[str, str]) -> frozenset[str]:
    """Tables that a query reads, through views or directly."""
    read, left = set[str](), [text]
    while left:
        found = {re.sub("^(loaded|changed)_", "", word) for word in _words(left.pop())} - read
        read |= found
        left += [views[name] for name in found & views.keys()]
    return frozenset(read & {table.name for table in TABLES})


def views_are_current(connection: duckdb.DuckDBPyConnection) -> bool:
    """True if the file's views and comments are those of the code, and if the code's checks have passed its rows."""
    made = dict(connection.execute("select name, sha256 from view_files").fetchall())
    return made == {name: _sha256(text) for name, text in (view_definitions() | _other_files()).items()}


def _other_files() -> dict[str, str]:
    """Texts beside the views on which a published file depends, by name."""
    checks = "\n".join(f"{name}: {text}" for name, text in check_definitions().items())
    return {path.name: path.read_text("utf-8") for path in (COLUMNS_FILE, COUNTED)} | {"checks": checks}


def check_all(connection: duckdb.DuckDBPyConnection) -> None:
    """Runs every check on all rows. Raises as `check_loaded`."""
    choose_rows(connection, None)
    for name, text in check_definitions().items():
        _check(connection, name, text)


def check_loaded(connection: duckdb.DuckDBPyConnection, tables: Collection[str], run_ids: Collection[str]) -> None:
    """Runs the checks of rows that a publish has loaded: those of `run_ids` in `tables`. All others passed before.

    Raises `CheckFailedError` with the name and some rows of the first check that returns rows.
    """
    choose_rows(connection, run_ids)
    views = view_definitions()
    for name, text in check_definitions().items():
        if not _find_tables(text, views).isdisjoint(tables):
            _check(connection, name, text)


def choose_rows(connection: duckdb.DuckDBPyConnection, run_ids: Collection[str] | None) -> None:
    """Makes the temporary views of the rows that checks look at, of some runs or (None) of all.

    `loaded_<table>` has the rows, and `changed_<table>` those of them that are current.
    """
    connection.execute(
        "create or replace temp table checked_runs as select unnest($1::varchar[]) as run_id", [[*(run_ids or ())]]
    )
    chosen = "" if run_ids is None else " where run_id in (select run_id from checked_runs)"
    for table in TABLES:
        connection.execute(f"create or replace temp view loaded_{table.name} as select * from {table.name}{chosen}")
        if table.group:
            connection.execute(
                f"create or replace temp view changed_{table.name} as select * from current_{table.name}{chosen}"
            )


def _check(connection: duckdb.DuckDBPyConnection, name: str, text: str) -> None:
    cursor = connection.execute(text)
    if rows := cursor.fetchmany(SHOWN_ROWS):
        columns = [column[0] for column in cursor.description]
        shown = "; ".join(str(dict(zip(columns, row, strict=True))) for row in rows)
        raise CheckFailedError(f"check {name} failed, the warehouse stays as it was; such as: {shown}")


def check_definitions() -> dict[str, str]:
    """Names and queries of all checks. A check returns rows that must not exist.

    It reads `loaded_<table>` and `changed_<table>` (see `choose_rows`) wherever rows of older runs are at no fault. A
    file in `checks/` is a check of the file's name. Generated here: `unknown_run` (a run that left records but no row
    at status 'running') and `unique_<table>` (a repeated key). Current rows of one key are always of one run.
    """
    checks = {path.stem: path.read_text("utf-8") for path in sorted((HERE / "checks").glob("*.sql"))}
    recorded = " union all ".join(
        f"select distinct '{table.name}' as table_name, run_id from loaded_{table.name}"
        for table in TABLES
        if table.name != "runs"
    )
    started = "select run_id from runs where status = 'running'"
    checks["unknown_run"] = f"select * from ({recorded}) as recorded anti join ({started}) as started using (run_id)"
    for table in TABLES:
        if table.key:
            key = ", ".join(table.key)
            rows = f"changed_{table.name}" if table.group else f"loaded_{table.name}"
            checks[f"unique_{table.name}"] = f"select {key}, count(*) as n from {rows} group by {key} having n > 1"
    return checks


def describe_query(text: str) -> str:
    """First line of an .sql file: the grain of its rows."""
    return text.partition("\n")[0].removeprefix("--").strip()


def _number(path: Path) -> str:
    match = MIGRATION_PATTERN.fullmatch(path.stem)
    if match is None:
        raise WarehouseError(f"migration {path.name} is not named like 0001_tables.sql")
    return match[1]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
