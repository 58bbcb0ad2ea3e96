"""Label: a labeller reads every report once a scan, and again only when the text or the labeller changes."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.device import Precision
from tasks.labelling import LabellerReference, plan_labels, record_labels
from tasks.planning import Selection
from tasks.runs import StageRun


@task(cache_policy=NO_CACHE)
def plan_labelling(
    run: StageRun,
    labeller: LabellerReference,
    dtype: Precision,
    selection: Selection,
    force: bool,
    retry_rejects: bool,
) -> dict[str, tuple[str, str]]:
    """The reports whose text or labeller is new."""
    return plan_labels(run, labeller.labeller_id, dtype, selection, force=force, retry_rejects=retry_rejects)


@task(cache_policy=NO_CACHE)
def label_reports(
    run: StageRun, labeller: LabellerReference, reports: dict[str, tuple[str, str]], device: str, dtype: Precision
) -> None:
    """Labels them."""
    if reports:
        record_labels(run, labeller, reports, device, dtype)
        get_run_logger().info("%d reports labelled by %s", len(reports), labeller.labeller_id)
