"""The index page of a data root: its pipeline, data and models, with links to the pages of the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb

from ctclip_model.errors import MissingInputError
from ctclip_model.files import whole_file
from tasks.report.render import MISSING, make_environment
from tasks.report.rows import Row, read_rows
from tasks.run.deadline import run_with_deadline
from tasks.run.lost import list_lost
from tasks.run.progress import describe_duration
from tasks.settings import STAGES
from tasks.upkeep.prefect_server import find_api_url, is_temporary, list_next_runs
from tasks.upkeep.queries import list_notes, list_warnings, read_status
from warehouse import store

FOLDER = "reports"  # folder of all pages, below the data root
FILE = "index.html"
SCHEDULE_S = 1.5  # seconds in which a Prefect server has told its schedule, or is left out
LARGEST_LIST = 100  # rows of a list that could grow without a bound
LARGEST_CHART = 20  # bars of a chart
LARGEST_CHART_COUNT = 12  # charts of prevalence
BOARD = ("dataset", "split", "label_set", "label_source", "by_published_protocol", "cohort")  # scored alike
KNOWN_STATES = ("done", "pending", "rejected")


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its label, its count, and the share of all that is counted."""

    label: str
    count: int
    share: float


@dataclass(frozen=True)
class Chart:
    """Bars of one fact. `count_left_out` bars have no room."""

    title: str
    bars: Sequence[Bar]
    count_left_out: int = 0


@dataclass(frozen=True)
class Index:
    """Content of the index page. A row maps column names to values."""

    title: str
    made_at: datetime
    notice: str = ""  # sentence in place of the warehouse's content
    counts: Row = field(default_factory=dict)
    sources: Sequence[Row] = ()
    stages: Sequence[Row] = ()  # a row per stage, with the rows of its variants
    next_runs: Sequence[tuple[str, datetime]] = ()
    schedule_note: str = ""
    attention: Sequence[str] = ()
    models: Sequence[Row] = ()
    boards: Sequence[tuple[Row, Sequence[Row]]] = ()  # (common facts, models that were scored alike)
    catalogue: Sequence[Chart] = ()
    prevalence: Sequence[Chart] = ()
    count_prevalence_left_out: int = 0
    rejects: Sequence[Row] = ()
    quality: Sequence[Row] = ()
    runs: Sequence[Row] = ()
    costs: Sequence[Row] = ()


def write_index(data_root: Path) -> Path:
    """Writes `reports/index.html`, complete or not at all, and returns its path.

    A data root without a warehouse gets a page that says so. Raises `WarehouseError` if the warehouse cannot be read,
    and `OSError` if the file cannot be written.
    """
    html = render_index(collect_index(data_root))
    path = data_root / FOLDER / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(html.encode())
    return path


def render_index(index: Index) -> str:
    """Renders the page. Every text is escaped."""
    environment = make_environment()
    environment.filters |= {
        "count": _count, "percent": _percent, "duration": _duration, "moment": _moment,
    }  # fmt: skip
    return environment.get_template("index.html").render(index=index)


def collect_index(data_root: Path) -> Index:
    """Collects everything that the page shows. Raises `WarehouseError` as `store.read` does."""
    title = f"Data root {data_root.resolve().name or data_root.resolve()}"
    try:
        with store.read(data_root) as connection:
            facts = _read_facts(connection, data_root)
    except MissingInputError:
        return Index(title, datetime.now(UTC), notice=store.describe_missing(data_root))
    stages = _read_status(data_root, "from stage_status")
    next_runs, schedule_note = read_schedule()
    return Index(
        title, datetime.now(UTC), stages=_gather_stages(stages), next_runs=next_runs, schedule_note=schedule_note,
        attention=_list_attention(data_root, stages),
        runs=_read_status(data_root, _sql("index_runs")), **facts,
    )  # fmt: skip


def read_schedule() -> tuple[list[tuple[str, datetime]], str]:
    """Next runs of the deployments, or a sentence on why there are none. Takes `SCHEDULE_S` at most."""
    url = find_api_url()
    if url is None or is_temporary(url):
        return [], "No Prefect server is named, so none was asked for a schedule."
    try:
        runs = run_with_deadline(SCHEDULE_S, list_next_runs)
    except OSError as error:  # a TimeoutError too
        return [], f"The schedule is left out: the Prefect server did not answer ({error})."
    return runs, "" if runs else "Nothing is scheduled."


def _read_facts(connection: duckdb.DuckDBPyConnection, data_root: Path) -> dict[str, Any]:
    def read(name: str) -> list[Row]:
        return read_rows(connection, _sql(name))

    (counts,) = read("index_counts")
    prevalence = list(_draw_prevalence(read("index_prevalence")))
    return {
        "counts": counts, "sources": read("index_sources"),
        "models": [row | {"link": _link(data_root, row["path"])} for row in read("index_models")],
        "boards": _gather_boards(read("index_leaderboard")), "catalogue": _draw_catalogue(read("catalogue")),
        "prevalence": prevalence[:LARGEST_CHART_COUNT],
        "count_prevalence_left_out": max(0, len(prevalence) - LARGEST_CHART_COUNT),
        "rejects": read("index_rejects")[:LARGEST_LIST], "quality": read("index_quality"),
        "costs": read_rows(connection, store.load_query("run_costs"))[:LARGEST_LIST],
    }  # fmt: skip


def _sql(name: str) -> str:
    return store.load_sql(__package__, name)


def _read_status(data_root: Path, sql: str) -> list[Row]:
    """Rows with the last status of runs. A run whose process died is `died`."""
    names, rows = read_status(data_root, sql)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _link(data_root: Path, path: str | None) -> str | None:
    """Relative link from the index to a page below `reports/`, or None if its file is gone."""
    pages = (data_root / FOLDER).resolve()
    file = (data_root / path).resolve() if path else pages
    if not file.is_relative_to(pages) or not file.is_file():
        return None
    return quote(file.relative_to(pages).as_posix())


def _gather_stages(rows: Sequence[Row]) -> list[Row]:
    """A row per stage of a rebuild, and per other stage that has run, with sums over its variants."""
    by_stage = {name: [row for row in rows if row["stage"] == name] for name in _order_stages(rows)}
    stages = []
    for name, variants in by_stage.items():
        counts = {state: sum(row[state] for row in variants) for state in KNOWN_STATES}
        latest = max(variants, key=lambda row: row["last_run_id"] or "", default={})
        stages.append({"stage": name, "variants": variants, "latest": latest} | counts)
    return stages


def _order_stages(rows: Sequence[Row]) -> list[str]:
    """Names of the stages that ran in their order, and of those of a rebuild that did not in their places."""
    names = list(dict.fromkeys(row["stage"] for row in rows))
    for position, stage in enumerate(STAGES):
        if stage not in names:
            before = [names.index(name) for name in STAGES[:position]]
            names.insert(max(before, default=-1) + 1, stage)
    return names


def _list_attention(data_root: Path, stages: Sequence[Row]) -> list[str]:
    """Sentences on stale models, warnings, notes on the data, and lost files."""
    stale = [
        f"{row['model_id']} is stale: {row['count_moved_samples']:,} samples moved; "
        f"`{row['stage']} --retrain` trains anew"
        for row in stages if row["is_stale"]
    ]  # fmt: skip
    lines = [*stale, *list_warnings(data_root), *list_notes(data_root), *list_lost(data_root)]
    left = len(lines) - LARGEST_LIST
    return [*lines[:LARGEST_LIST], f"and {left} more: see `ctclip status`"] if left > 0 else lines


def _gather_boards(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """Groups of models that were scored on the same cohort by the same labels."""
    groups = ((dict(zip(BOARD, key, strict=True)), list(group)) for key, group in groupby(rows, _board_key))
    return list(groups)


def _board_key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in BOARD)


def _draw_catalogue(rows: Sequence[Row]) -> list[Chart]:
    return [
        _make_chart(fact, [(row["value"], row["count_volumes"]) for row in group])
        for fact, group in groupby(rows, lambda row: row["fact"])
    ]


def _make_chart(title: str, counts: Sequence[tuple[str, int]]) -> Chart:
    total = sum(count for _, count in counts)
    bars = [Bar(label, count, count / total) for label, count in counts]
    return Chart(title, bars[:LARGEST_CHART], max(0, len(bars) - LARGEST_CHART))


def _draw_prevalence(rows: Sequence[Row]) -> Iterator[Chart]:
    for (label_set, labeller), group in groupby(rows, lambda row: (row["label_set"], row["labeller_id"])):
        found = list(group)
        bars = [Bar(row["abnormality"], row["n_positive"], row["n_positive"] / row["n"]) for row in found]
        scans = max(row["n"] for row in found)
        title = f"{labeller}, {label_set}, {scans:,} scans"
        yield Chart(title, bars[:LARGEST_CHART], max(0, len(bars) - LARGEST_CHART))


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.001 else f"{share:.1%}".replace("%", " %")


def _duration(seconds: float | None) -> str:
    return MISSING if seconds is None else describe_duration(seconds)


def _moment(at: datetime | None) -> str:
    return MISSING if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"
