"""Write one self-contained HTML page for each changed evaluation of a model."""

from __future__ import annotations

from typing import Any

from flows.flow_taking import flow_taking
from flows.options import ReportOptions
from tasks.models.find import find_model
from tasks.run.publish import publish_leftovers
from tasks.settings import LIMITS
from tasks.stages.report import plan_pages, write_page
from tasks.stages.stage import stage_run


@flow_taking(ReportOptions, timeout_seconds=LIMITS.stage_timeout_s)
def report(options: ReportOptions) -> dict[str, Any]:
    publish_leftovers(options.data_root)
    model = find_model(options.data_root, options.preset, options.model)
    with stage_run(options.data_root, "report", model.model_id) as run:
        for page in plan_pages(run, model, options.force):
            write_page(run, model, page)
    return run.summary()
