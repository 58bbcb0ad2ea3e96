"""Label: a labeller reads every report once a scan, and again only when the text or the labeller changes."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.device import Precision
from tasks.labels.label import plan_labels, record_labels
from tasks.labels.labellers import LabellerReference
from tasks.labels.score import HandScoring, plan_scoring, record_trained_on, score_labeller
from tasks.run.pending import Selection
from tasks.run.stage_run import StageRun


@task(cache_policy=NO_CACHE)
def note_training_reports(run: StageRun, labeller: LabellerReference, trained_on: Path) -> None:
    """Records what an imported labeller was trained on."""
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


@task(cache_policy=NO_CACHE)
def plan_hand_scoring(
    run: StageRun, labeller: LabellerReference, hand_labels: Path, dtype: Precision, force: bool
) -> HandScoring | None:
    """The hand-labelled reports that score the labeller, if anything about them or it is new."""
    return plan_scoring(run, labeller.labeller_id, hand_labels, dtype, force=force)


@task(cache_policy=NO_CACHE)
def score_on_hand_labels(
    run: StageRun, labeller: LabellerReference, scoring: HandScoring | None, device: str, dtype: Precision
) -> None:
    """Scores it."""
    if scoring is not None:
        score_labeller(run, labeller, scoring, device, dtype)
        get_run_logger().info("%s scored on %d reports", labeller.labeller_id, len(scoring.reports.texts))
