"""Train a labeller: on the reports of the train split and their published labels, or on hand labels."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import TfidfConfig
from tasks.labelling import (
    TRAINED_PREFIX,
    LabelledReports,
    LabellerTraining,
    read_labelled_reports,
    run_labeller_training,
)
from tasks.planning import plan_items
from tasks.runs import StageRun
from tasks.sources.hand_labels import read_hand_labels


@task(cache_policy=NO_CACHE)
def collect_labelled_reports(run: StageRun, hand_labels: Path | None) -> LabelledReports:
    """Every report of the train split that has published labels; those of a file instead, where there is one."""
    return read_labelled_reports(run.data_root) if hand_labels is None else read_hand_labels(hand_labels)


@task(cache_policy=NO_CACHE)
def fit_labeller(run: StageRun, training: LabellerTraining, reports: LabelledReports, force: bool) -> str:
    """Trains on them, unless that has been done; returns the labeller's identifier."""
    if isinstance(training.config, TfidfConfig):
        reports = reports.draw(training.config.max_reports, training.config.seed)
    mark = reports.fingerprint(training)
    labeller_id = f"{TRAINED_PREFIX}{training.name}-{mark[:10]}"
    if plan_items(run, run.variant, {mark: mark}, force=force):
        run_labeller_training(run, training, reports, labeller_id)
        get_run_logger().info("%s is trained on %d reports", labeller_id, len(reports.texts))
    return labeller_id
