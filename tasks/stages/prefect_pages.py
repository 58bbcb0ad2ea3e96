"""What Prefect's pages show of a stage: its progress, a summary, the reasons of its rejects, and what it made of what.

Prefect is the only one told: nothing here is needed by a rerun, and a server that is away stops no stage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.assets import Asset, add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from ctclip_model.stages import PIPELINE, Stage
from tasks.run.progress import Reporter
from tasks.run.stage_run import StageRun
from tasks.sources.changes import Changes
from warehouse import store

logger = logging.getLogger(__name__)

DATA_CHANGED = "ctclip.data.changed"  # an event, which prefect.yaml's rebuild waits for
PROGRESS_INTERVAL_S = 20.0  # a stage that ends sooner has no progress artifact


class ProgressArtifact:
    """Shows progress as another reporter does, and on the flow run's page once it lasts."""

    def __init__(self, shown: Reporter) -> None:
        self.shown = shown
        self.artifact: UUID | None = None
        self.last, self.total, self.unit = 0.0, 0, ""

    def start(self, stage: str, total: int, unit: str) -> None:
        self.shown.start(stage, total, unit)
        self.artifact, self.last, self.total, self.unit = None, time.monotonic(), total, unit

    def update(self, stage: str, done: int, note: str) -> None:
        self.shown.update(stage, done, note)
        if time.monotonic() - self.last > PROGRESS_INTERVAL_S and self.total:
            self._tell(stage, done, note)

    def end(self, stage: str) -> None:
        self.shown.end(stage)

    def _tell(self, stage: str, done: int, note: str) -> None:
        self.last = time.monotonic()
        percent = min(100.0, 100.0 * done / self.total)
        text = f"{done} of {self.total} {self.unit} {note}".rstrip()
        with_server(self._write, stage, percent, text)

    def _write(self, stage: str, percent: float, text: str) -> None:
        if self.artifact is None:
            made = create_progress_artifact(percent, key=f"{stage}-progress", description=text)
            self.artifact = made if isinstance(made, UUID) else None
        else:
            update_progress_artifact(self.artifact, progress=percent, description=text)


def with_server(tell: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Tells the server something that a stage does not depend on."""
    try:
        tell(*arguments, **named)
    except Exception as error:  # noqa: BLE001  whatever it is, the stage's own work is done and recorded
        logger.info("the Prefect server was not told: %s: %s", type(error).__name__, error)


def show_end(run: StageRun) -> None:
    """A markdown artifact of what the run did, a table of why items are rejected, and the assets that it made."""
    create_markdown_artifact(_describe(run), key=f"{run.stage}-summary", description=run.detail)
    if reasons := _count_reasons(run):
        create_table_artifact(reasons, key=f"{run.stage}-rejects", description="items rejected, by reason")
    stage = PIPELINE.get(run.stage)
    if stage is not None and stage.makes and run.count_done:
        _materialize(run, stage)


def show_page(path: Path) -> None:
    """A link to a report page."""
    with_server(create_link_artifact, path.as_uri(), link_text=path.name, key="report-page")


def announce_changes(run: StageRun, source: str, revision: str, changes: Changes) -> None:
    """Emits one event when the source has changed, unless the flow around this one goes on with it anyhow."""
    if not changes.is_any or runtime.flow_run.parent_flow_run_id:
        return
    kinds = ("new", "changed", "withdrawn")
    counts = {f"{table}_{kind}": changes.count(kind, table) for table in changes.rows for kind in kinds}
    with_server(
        emit_event, DATA_CHANGED, {"prefect.resource.id": f"ctclip.source.{source}"},
        payload={"revision": revision, "run_id": run.run_id} | counts,
    )  # fmt: skip


def _describe(run: StageRun) -> str:
    lines = [f"# {run.stage} {run.variant}".rstrip(), run.detail]
    figures = {
        "made": run.count_done, "rejected": run.count_rejected, "seconds": round(time.monotonic() - run.started, 1),
        "run": run.run_id, "data root": run.data_root,
    }  # fmt: skip
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures.items())]
    return "\n\n".join([*filter(None, lines), "\n".join(table)])


def _count_reasons(run: StageRun) -> list[dict[str, Any]]:
    with store.read(run.data_root) as connection:
        rows = connection.execute(
            "select reason, count(*), min(item), any_value(detail) from open_rejects where stage = ? group by reason "
            "order by count(*) desc",
            [run.stage],
        ).fetchall()
    return [dict(zip(("reason", "items", "such as", "detail"), row, strict=True)) for row in rows]


def _materialize(run: StageRun, stage: Stage) -> None:
    sources = _list_sources(run)
    keys = [key for data in stage.made_of for key in (sources if data == "source:" else [_key(run, data)])]

    @materialize(
        Asset(key=_key(run, stage.makes)), asset_deps=list(keys), cache_policy=NO_CACHE, name=f"{stage.name}-asset"
    )
    def record_asset() -> None:
        add_asset_metadata(
            _key(run, stage.makes),
            {"run_id": run.run_id, "variant": run.variant, "rows": run.count_done, "rejected": run.count_rejected}
            | {"sources": sources, "detail": run.detail},
        )

    record_asset()


def _key(run: StageRun, place: str) -> str:
    scheme, _, name = place.partition(":")
    return (
        f"duckdb://{run.data_root}/warehouse.duckdb/{name}" if scheme == "duckdb" else f"file://{run.data_root}/{name}"
    )


def _list_sources(run: StageRun) -> list[str]:
    """The sources' addresses, each as a URI."""
    with store.read(run.data_root) as connection:
        rows = connection.execute("select distinct source from current_sources order by source").fetchall()
    return [source if "://" in source else f"file://{source.rpartition(':')[2]}" for (source,) in rows]
