"""Questions to the published warehouse, as the command line asks them. Imports no Prefect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctclip_model.errors import ConfigurationError
from tasks.settings import STAGES
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


def explain_plan(data_root: Path, stage: str, limit: int) -> dict[str, Any]:
    """What a rerun of a stage would do as far as is known now, by reason and item by item."""
    if stage not in STAGES:
        raise ConfigurationError(f"there is no stage {stage!r}; there are {', '.join(STAGES)}")
    with store.read(data_root) as connection:
        wanted = connection.execute("select count(*) from work_items where stage = ?", [stage]).fetchone()
        items = connection.execute(_WHY, {"stage": stage}).fetchall()
        downloads = _list_downloads(connection, data_root) if stage == "convert" else {}
    return {
        "stage": stage,
        "wanted": wanted[0] if wanted else 0,
        "pending": len(items),
        "reasons": dict(Counter(why for _, _, why in items)),
        "downloads": {"files": len(downloads), "bytes": sum(downloads.values())},
        "items": [{"variant": variant, "item": item, "why": why} for variant, item, why in items[:limit]],
    }


def _list_downloads(connection: Any, data_root: Path) -> dict[str, int]:
    """Of the volumes that wait for conversion those of the Hub that are not in `raw/`, and their sizes in bytes."""
    from tasks.downloads import list_raw_files  # and with it the Hub's client, which no other question needs

    rows = connection.execute(
        "select path, size_bytes from current_volumes as volumes "
        "semi join pending on pending.stage = 'convert' and pending.item = volumes.volume_name "
        "where starts_with(source, 'hf://')"
    ).fetchall()
    folder = data_root.resolve() / "raw"
    there = list_raw_files(folder)
    return {path: size for path, size in rows if str(folder / path) not in there}


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

_WHY = """
select pending.variant, pending.item,
    case
        when rejects.item is not null and not rejects.is_permanent then 'failed before: ' || rejects.reason
        when rejects.item is not null then 'changed since it was rejected: ' || rejects.reason
        when done.item is not null then 'changed since it was made'
        else 'never made'
    end as why
from pending
left join done using (stage, variant, item)
left join current_rejects as rejects using (stage, variant, item)
where stage = $stage
order by pending.variant, pending.item
"""
