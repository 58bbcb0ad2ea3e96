"""Finetune: VocabFine or LiPro from a trained CT-CLIP and a manifest of labelled samples."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.device import Compute
from ctclip_model.training.job import Manifest
from tasks.models.record import note_held_out
from tasks.run.stage_run import StageRun
from tasks.stages.deployed import execute
from tasks.stages.retries import RETRIED
from tasks.stages.train import plan_model
from tasks.training.fine_tune import Finetuning, make_manifest
from tasks.training.orders import TrainingWork
from tasks.training.processes import Launch


def plan_finetuning(run: StageRun, finetuning: Finetuning, retrain: bool) -> bool:
    """True if the configuration has no model of this parent, or on request."""
    return plan_model(run, finetuning.fingerprint, retrain)


@task(cache_policy=NO_CACHE)
def prepare_samples(run: StageRun, finetuning: Finetuning) -> Manifest:
    """Writes the manifest of the labelled samples."""
    manifest = make_manifest(run, finetuning)
    get_run_logger().info("%s: %d samples", manifest.model_id, manifest.count_samples)
    return manifest


@task(**RETRIED)
def finetune_model(
    run: StageRun, finetuning: Finetuning, manifest: Manifest, compute: Compute, launch: Launch, deployed: bool
) -> None:
    """Trains the model. A rerun of an interrupted training goes on from the last checkpoint."""
    execute(run, TrainingWork(finetuning.make_job(manifest, compute), launch), deployed)
    note_held_out(run, manifest.model_id, "no scan was held out to score it: see `ctclip evaluate`")
    get_run_logger().info("%s is trained", manifest.model_id)
