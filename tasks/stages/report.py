"""Report: one HTML page for each evaluation, and the index page of the data root."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from ctclip_model.errors import StorageError
from tasks.labels.label_sources import LabelSource
from tasks.models.find import ModelReference
from tasks.report.index import write_index
from tasks.report.pages import Page, list_pages, make_page
from tasks.run.pending import plan_items
from tasks.run.stage_run import StageRun
from tasks.stages.prefect_pages import show_page
from warehouse.store import WAREHOUSE_FILE

logger = logging.getLogger(__name__)

INDEX_KEY = "index-page"  # key of the index's link among the artifacts of flow runs


def plan_pages(
    run: StageRun, model: ModelReference, force: bool, source: LabelSource, against: str | None = None
) -> list[Page]:
    """Pages whose evaluations have changed, or whose first screen is to show another comparison."""
    pages = list_pages(run.data_root, model, against, source)
    wanted = {key: page.fingerprint for key, page in pages.items()}
    pending = plan_items(run, model.model_id, wanted, force=force, is_complete=False)  # pages by other labels stay
    return [pages[key] for key in pending]


@task(cache_policy=NO_CACHE)
def write_page(run: StageRun, model: ModelReference, page: Page) -> None:
    """Writes the page and links to it from the flow run."""
    path = make_page(run, model, page)
    show_page(path)
    get_run_logger().info("%s", path)


def make_index(data_root: Path) -> dict[str, Any]:
    """Writes the index page, links to it from a flow run, and returns the summary of the work.

    It records nothing. Raises `StorageError` if the page cannot be written, and `WarehouseError` as a reader does.
    """
    started = time.monotonic()
    try:
        path = write_index(data_root)
    except OSError as error:
        raise StorageError(f"{data_root}: the index page cannot be written: {error.strerror or error}") from error
    if FlowRunContext.get() is not None:
        show_page(path, INDEX_KEY)
    return {
        "stage": "report", "variant": "index", "run_id": "", "done": 1, "rejected": 0, "detail": str(path),
        "duration_s": round(time.monotonic() - started, 2),
    }  # fmt: skip


def refresh_index(data_root: Path) -> None:
    """Writes the index page of a published data root after other work.

    A failure is one warning, and the old page stays.
    """
    try:
        if (data_root / WAREHOUSE_FILE).exists():
            make_index(data_root)
    except Exception as error:  # noqa: BLE001  the work before it is done and recorded, whatever fails here
        logger.warning("the index page was not written: %s: %s", type(error).__name__, " ".join(str(error).split()))


@contextmanager
def refreshed_index(data_root: Path) -> Iterator[None]:
    """Writes the index page after the work of a block, done or failed. Ctrl-C leaves the old page."""
    try:
        yield
    except Exception:
        refresh_index(data_root)
        raise
    refresh_index(data_root)
