"""Write the HTML page of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from tasks.models.find import find_model
from tasks.run.publish import publish_leftovers
from tasks.settings import DATA_ROOT, LIMITS, PRESET
from tasks.stages.report import plan_pages, write_page
from tasks.stages.stage import stage_run


@flow(name="report", timeout_seconds=LIMITS.stage_timeout_s)
def report(
    data_root: Path = DATA_ROOT, preset: str = PRESET, model: str | None = None, force: bool = False
) -> dict[str, Any]:
    """Write one self-contained page for every evaluation of the model whose rows changed."""
    publish_leftovers(data_root)
    chosen = find_model(data_root, preset, model)
    with stage_run(data_root, "report", chosen.model_id) as run:
        for page in plan_pages(run, chosen, force):
            write_page(run, chosen, page)
    return run.summary()
