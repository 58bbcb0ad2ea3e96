"""Prefect's pages of a stage: progress, summary, reasons of rejects, and assets.

No rerun depends on them, and a Prefect server that is away stops no stage.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.assets import Asset, add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from ctclip_model.stages import PIPELINE, Stage
from tasks.run.progress import Reporter
from tasks.run.stage_run import StageRun
from tasks.upkeep.lost_server import IS_LOST
from warehouse import store

logger = logging.getLogger(__name__)

LOST = (httpx.TransportError, PrefectHTTPStatusError)
PROGRESS_INTERVAL_S = 20.0  # seconds between two updates: a shorter stage has no progress artifact


class ProgressArtifact:
    """Reporter that also shows progress on the flow run's page, once a stage lasts."""

    def __init__(self, shown: Reporter) -> None:
        self.shown = shown
        self.artifact: UUID | None = None
        self.last, self.total, self.unit = 0.0, 0, ""

    def open(self, stage: str) -> None:
        self.shown.open(stage)

    def start(self, work: str, total: int, unit: str) -> None:
        self.shown.start(work, total, unit)
        self.artifact, self.last, self.total, self.unit = None, time.monotonic(), total, unit

    def update(self, work: str, done: int, note: str) -> None:
        self.shown.update(work, done, note)
        if time.monotonic() - self.last > PROGRESS_INTERVAL_S and self.total:
            self._show(work, done, note)

    def end(self, work: str) -> None:
        self.shown.end(work)

    def close(self, stage: str) -> None:
        self.shown.close(stage)

    def _show(self, work: str, done: int, note: str) -> None:
        self.last = time.monotonic()
        percent = min(100.0, 100.0 * done / self.total)
        text = f"{done} of {self.total} {self.unit} {note}".rstrip()
        with_server(self._write, work, percent, text)

    def _write(self, work: str, percent: float, text: str) -> None:
        if self.artifact is None:
            made = create_progress_artifact(percent, key=f"{work}-progress", description=text)
            self.artifact = made if isinstance(made, UUID) else None
        else:
            update_progress_artifact(self.artifact, progress=percent, description=text)


def with_server(call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Calls the Prefect server. A failure is logged and ignored, because no stage depends on these calls."""
    try:
        call(*arguments, **named)
    except Exception as error:  # noqa: BLE001  the stage's own work is done and recorded, whatever fails here
        logger.info("the Prefect server was not reached: %s: %s", type(error).__name__, error)
        context = FlowRunContext.get()
        is_of_worker = (
            context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
        )
        if isinstance(error, LOST) and not is_of_worker:
            note_loss(error)


def note_loss(error: Exception) -> None:
    """Says once that the server is lost. Later requests are made once, so that nothing waits for it again."""
    if not IS_LOST.is_set():
        IS_LOST.set()
        get_current_settings().client.max_retries = 0
        print(f"ctclip: Prefect was lost ({type(error).__name__}), and the work goes on without it", file=sys.stderr)


def is_nested() -> bool:
    """True in a flow run that another flow run has called. Prefect's `runtime` would ask the server."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.parent_task_run_id is not None


def show_end(run: StageRun) -> None:
    """Shows a run's summary, the reasons of its stage's rejects, and its assets."""
    create_markdown_artifact(_describe(run), key=f"{run.stage}-summary", description=run.detail)
    if reasons := _count_reasons(run):
        create_table_artifact(reasons, key=f"{run.stage}-rejects", description="items rejected, by reason")
    stage = PIPELINE.get(run.stage)
    if stage is not None and stage.makes and run.count_done:
        _materialize(run, stage)


def show_page(path: Path, key: str = "report-page") -> None:
    """Shows a link to a page below `reports/`."""
    with_server(create_link_artifact, path.resolve().as_uri(), link_text=path.name, key=key)


def _describe(run: StageRun) -> str:
    lines = [f"# {run.stage} {run.variant}".rstrip(), run.detail]
    facts = {
        "made": run.count_done, "rejected": run.count_rejected, "seconds": round(time.monotonic() - run.started, 1),
        "run": run.run_id, "data root": run.data_root,
    }  # fmt: skip
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    return "\n\n".join([*filter(None, lines), "\n".join(table)])


def _count_reasons(run: StageRun) -> list[dict[str, Any]]:
    rows = store.query(run.data_root, store.load_sql(__package__, "reject_reasons"), [run.stage])
    return [dict(zip(("reason", "items", "such as", "detail"), row, strict=True)) for row in rows]


def _materialize(run: StageRun, stage: Stage) -> None:
    """Records the data that the stage made, and the data that it is made of, as assets."""
    sources = _list_sources(run)
    asset = _name_asset(run, stage.makes)
    inputs = [_name_asset(run, data) for data in stage.made_of if data != "source:"]
    inputs += sources if "source:" in stage.made_of else []

    @materialize(Asset(key=asset), asset_deps=list(inputs), cache_policy=NO_CACHE, name=f"{stage.name}-asset")
    def record_asset() -> None:
        facts = {"run_id": run.run_id, "variant": run.variant, "rows": run.count_done, "rejected": run.count_rejected}
        add_asset_metadata(asset, facts | {"sources": sources, "detail": run.detail})

    record_asset()


def _name_asset(run: StageRun, data: str) -> str:
    """URI of a table or folder, which `Stage` names as `duckdb:<table>` or `file:<folder>`."""
    scheme, _, name = data.partition(":")
    file = "warehouse.duckdb/" if scheme == "duckdb" else ""
    return f"{scheme}://{run.data_root}/{file}{name}"


def _list_sources(run: StageRun) -> list[str]:
    """Addresses of the ingested sources, each as a URI."""
    rows = store.query(run.data_root, "select distinct source from current_sources order by source")
    return [source if "://" in source else f"file://{source.rpartition(':')[2]}" for (source,) in rows]
