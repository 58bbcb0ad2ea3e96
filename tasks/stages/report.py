"""Report: one HTML page for each evaluation."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.models.find import ModelReference
from tasks.report.pages import Page, list_pages, make_page
from tasks.run.pending import plan_items
from tasks.run.stage_run import StageRun
from tasks.stages.prefect_pages import show_page


@task(cache_policy=NO_CACHE)
def plan_pages(run: StageRun, model: ModelReference, force: bool) -> list[Page]:
    """Pages whose evaluations have changed."""
    pages = list_pages(run.data_root, model)
    pending = plan_items(run, model.model_id, {key: page.fingerprint for key, page in pages.items()}, force=force)
    return [pages[key] for key in pending]


@task(cache_policy=NO_CACHE)
def write_page(run: StageRun, model: ModelReference, page: Page) -> None:
    """Writes the page and links to it from the flow run."""
    path = make_page(run, model, page)
    show_page(path)
    get_run_logger().info("%s", path)
