"""Train a labeller on the train split's reports and published labels, or on hand labels."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import Preset, TfidfConfig
from ctclip_model.device import Compute
from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.job import TrainingJob
from tasks.labels.hand_labels import read_hand_labels
from tasks.labels.reports import LabelledReports, LabellerTraining, read_labelled_reports
from tasks.models.record import note_held_out
from tasks.run.pending import plan_items
from tasks.run.stage_run import StageRun
from tasks.stages.deployed import execute
from tasks.stages.retries import RETRIED
from tasks.training.labeller import place_reports, run_tfidf_training
from tasks.training.orders import TrainingWork
from tasks.training.processes import Launch
from tasks.training.records import discard_recorded_state, must_train_again


@task(cache_policy=NO_CACHE)
def collect_labelled_reports(run: StageRun, training: LabellerTraining, hand_labels: Path | None) -> LabelledReports:
    """Labelled reports of the train split, or of a file of hand labels. The tf-idf labeller takes a random sample."""
    reports = read_labelled_reports(run.data_root) if hand_labels is None else read_hand_labels(hand_labels)
    config = training.config
    return reports.draw(config.max_reports, config.seed) if isinstance(config, TfidfConfig) else reports


def plan_labeller_training(run: StageRun, training: LabellerTraining, reports: LabelledReports, force: bool) -> bool:
    """True if the configuration has no labeller trained on exactly these reports, or on request."""
    fingerprint = reports.fingerprint(training)
    discard_recorded_state(run.data_root, fingerprint)
    force = force or must_train_again(run.data_root, fingerprint)
    return bool(plan_items(run, run.variant, {fingerprint: fingerprint}, force=force))


@task(**RETRIED)
def fit_labeller(
    run: StageRun,
    training: LabellerTraining,
    preset: Preset,
    reports: LabelledReports,
    compute: Compute,
    launch: Launch,
    deployed: bool,
) -> None:
    """Trains the labeller. A rerun of an interrupted training goes on from the last checkpoint."""
    if isinstance(training.config, TfidfConfig):
        run_tfidf_training(run, training, reports)
    else:
        manifest = place_reports(run.data_root, reports, training)
        job = TrainingJob(ModelKind.labeller, manifest, preset, compute)
        execute(run, TrainingWork(job, launch), deployed)
    note_held_out(run, reports.labeller_id(training), "")
    get_run_logger().info("%s is trained on %d reports", reports.labeller_id(training), len(reports.texts))
