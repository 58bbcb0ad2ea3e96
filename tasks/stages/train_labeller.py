"""Train a labeller: on the reports of the train split and their published labels."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import Preset
from tasks.labelling import TRAINED_PREFIX, LabelledReports, read_labelled_reports, run_labeller_training
from tasks.planning import plan_items
from tasks.runs import StageRun


@task(cache_policy=NO_CACHE)
def collect_labelled_reports(run: StageRun) -> LabelledReports:
    """Every report of the train split that has published labels."""
    return read_labelled_reports(run.data_root)


@task(cache_policy=NO_CACHE)
def fit_labeller(run: StageRun, preset: Preset, reports: LabelledReports, force: bool) -> str:
    """Trains on them, unless that has been done; returns the labeller's identifier."""
    mark = reports.fingerprint(preset)
    labeller_id = f"{TRAINED_PREFIX}{preset.name}-{mark[:10]}"
    if plan_items(run, run.variant, {mark: mark}, force=force):
        run_labeller_training(run, preset, reports, labeller_id)
        get_run_logger().info("%s is trained on %d reports", labeller_id, len(reports.texts))
    return labeller_id
