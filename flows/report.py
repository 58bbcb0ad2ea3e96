"""Write one self-contained HTML page for each changed evaluation of a model, and the index page."""

from __future__ import annotations

from typing import Any

from flows.flow_taking import flow_taking
from flows.options import ReportOptions
from tasks.evaluation.evaluations import choose_source
from tasks.models.find import find_model
from tasks.report.pages import check_against
from tasks.run.publish import publish_leftovers
from tasks.settings import LIMITS
from tasks.stages.prefect_pages import is_nested
from tasks.stages.report import make_index, plan_pages, refresh_index, write_page
from tasks.stages.stage import stage_run


@flow_taking(ReportOptions, timeout_seconds=LIMITS.stage_timeout_s)
def report(options: ReportOptions) -> dict[str, Any]:
    publish_leftovers(options.data_root)
    if options.index:
        return make_index(options.data_root)
    model = find_model(options.data_root, options.preset, options.model)
    source = choose_source(options.data_root, model, options.labels_of)
    check_against(options.data_root, model, options.against, source)
    with stage_run(options.data_root, "report", model.model_id) as run:
        for page in plan_pages(run, model, options.force, source, options.against):
            write_page(run, model, page)
    summary = run.summary()
    if not is_nested():  # a rebuild writes the index once, at its end
        refresh_index(options.data_root)
    return summary
