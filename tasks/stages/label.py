"""Label: a labeller reads every report once a scan, and again only when the text or the labeller changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.labelling import find_labeller, plan_labels, record_labels
from tasks.planning import Selection
from tasks.runs import StageRun

if TYPE_CHECKING:
    from ctclip_model.training.labeller import Labeller


def open_labeller(data_root: Path, name: str) -> Labeller:
    """The labeller of that name, loaded."""
    from ctclip_model.training.labeller import load_labeller

    return load_labeller(find_labeller(data_root, name))


@task(cache_policy=NO_CACHE)
def plan_labelling(
    run: StageRun, labeller: Labeller, selection: Selection, force: bool, retry_rejects: bool
) -> dict[str, tuple[str, str]]:
    """The reports whose text or labeller is new."""
    return plan_labels(run, labeller.labeller_id, selection, force=force, retry_rejects=retry_rejects)


@task(cache_policy=NO_CACHE)
def label_reports(run: StageRun, labeller: Labeller, reports: dict[str, tuple[str, str]]) -> None:
    """Labels them."""
    if reports:
        record_labels(run, labeller, reports)
        get_run_logger().info("%d reports labelled by %s", len(reports), labeller.labeller_id)
