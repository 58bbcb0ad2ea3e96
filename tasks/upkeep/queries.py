"""Questions to the published warehouse, as the command line asks them. Imports no Prefect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctclip_model.errors import ConfigurationError
from warehouse import store


def run_query(data_root: Path, query: str, parameters: Sequence[str]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The answer to a person's SQL, or to the saved query `@name` with its `key=value` parameters."""
    values = {}
    for parameter in parameters:
        name, separator, value = parameter.partition("=")
        if not separator:
            raise ConfigurationError(f"--param {parameter!r} is not key=value")
        values[name] = value
    sql = store.load_query(query[1:]) if query.startswith("@") else query
    result = store.run_user_sql(data_root, sql, values or None)
    return result.columns, result.rows


def saved_queries() -> list[tuple[str, str]]:
    """Every saved query and what it answers."""
    return [(f"@{name}", description) for name, description in store.list_queries().items()]


def export_table(data_root: Path, table: str, path: Path, file_format: str) -> int:
    """Writes a table or view to a Parquet or CSV file and returns its number of rows."""
    with store.read(data_root) as connection:
        known = {name for (name,) in connection.execute("select table_name from information_schema.tables").fetchall()}
        if table not in known:
            raise ConfigurationError(f"there is no table or view {table!r}; there are: {', '.join(sorted(known))}")
        relation = connection.table(table)
        temporary = path.with_name(f".{path.name}.tmp")
        if file_format == "csv":
            relation.write_csv(str(temporary), header=True)
        else:
            relation.write_parquet(str(temporary), compression="zstd")
        temporary.replace(path)
        (count,) = relation.count("*").fetchall()[0]
    return int(count)


# `ctclip status` on a screen of 80 columns; the view has more
STATUS = """
select
    stage, case when length(variant) > 20 then '…' || right(variant, 19) else variant end as variant,
    done, pending, rejected, coalesce(last_status, 'never run') as "last run",
    strftime(last_finished_at::timestamp, '%m-%d %H:%M') as "at (UTC)"
from stage_status
"""
STALE = """
select format('{} is stale: {} of its {} samples moved; `{} --retrain` trains anew',
    stage_status.model_id, stale_models.count_moved_samples, stale_models.count_samples, stage)
from stage_status
join stale_models using (model_id)
where stale_models.is_stale
"""
