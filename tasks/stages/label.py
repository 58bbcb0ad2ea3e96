"""Label: a labeller reads the report of each scan, and again only if the text or the labeller changes."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.device import Precision
from tasks.labels.label import plan_labels, record_labels
from tasks.labels.labellers import LabellerReference
from tasks.labels.score import HandScoring, plan_scoring, record_trained_on, score_labeller
from tasks.run.selection import Selection
from tasks.run.stage_run import StageRun


@task(cache_policy=NO_CACHE)
def note_training_reports(run: StageRun, labeller: LabellerReference, trained_on: Path) -> None:
    """Records the reports that trained an imported labeller."""
    record_trained_on(run, labeller.labeller_id, trained_on)


@task(cache_policy=NO_CACHE)
def plan_labelling(
    run: StageRun,
    labeller: LabellerReference,
    dtype: Precision,
    selection: Selection,
    force: bool,
    retry_rejects: bool,
) -> dict[str, tuple[str, str]]:
    """Reports with a new text or labeller, by scan."""
    return plan_labels(run, labeller.labeller_id, dtype, selection, force=force, retry_rejects=retry_rejects)


@task(cache_policy=NO_CACHE)
def label_reports(
    run: StageRun, labeller: LabellerReference, reports: dict[str, tuple[str, str]], device: str, dtype: Precision
) -> None:
    """Labels the reports and records the labels."""
    if reports:
        record_labels(run, labeller, reports, device, dtype)
        get_run_logger().info("%d reports labelled by %s", len(reports), labeller.labeller_id)


@task(cache_policy=NO_CACHE)
def plan_hand_scoring(
    run: StageRun, labeller: LabellerReference, hand_labels: Path, dtype: Precision, force: bool
) -> HandScoring | None:
    """Hand-labelled reports that score the labeller, or None if nothing about either is new."""
    return plan_scoring(run, labeller.labeller_id, hand_labels, dtype, force=force)


@task(cache_policy=NO_CACHE)
def score_on_hand_labels(
    run: StageRun, labeller: LabellerReference, scoring: HandScoring | None, device: str, dtype: Precision
) -> None:
    """Scores the labeller on the hand-labelled reports."""
    if scoring is not None:
        score_labeller(run, labeller, scoring, device, dtype)
        get_run_logger().info("%s scored on %d reports", labeller.labeller_id, len(scoring.reports.texts))
