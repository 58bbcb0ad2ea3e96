"""Finetune: VocabFine or LiPro of a trained CT-CLIP, from a manifest of labelled samples alone."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.device import Compute
from tasks.run.pending import plan_items
from tasks.run.stage_run import StageRun
from tasks.stages.deployed import execute
from tasks.stages.retries import RETRIED
from tasks.training.fine_tune import Finetuning, make_manifest
from tasks.training.manifest import Manifest
from tasks.training.orders import FinetuningWork
from tasks.training.processes import Launch
from tasks.training.records import describe_stale, is_unfinished


@task(cache_policy=NO_CACHE)
def plan_finetuning(run: StageRun, finetuning: Finetuning, retrain: bool) -> bool:
    """Whether to train: where the configuration has no model of this parent, or on request."""
    fingerprint = finetuning.fingerprint
    is_due = bool(
        plan_items(
            run, run.variant, {fingerprint: fingerprint}, force=retrain or is_unfinished(run.data_root, fingerprint)
        )
    )
    if not is_due:
        run.detail = describe_stale(run.data_root, fingerprint)
        if run.detail:
            get_run_logger().warning("%s", run.detail)
    return is_due


@task(cache_policy=NO_CACHE)
def prepare_samples(run: StageRun, finetuning: Finetuning) -> Manifest:
    """Writes down what the training reads."""
    manifest = make_manifest(run, finetuning)
    get_run_logger().info("%s: %d samples", manifest.model_id, manifest.count_samples)
    return manifest


@task(**RETRIED)
def finetune_model(
    run: StageRun, finetuning: Finetuning, manifest: Manifest, compute: Compute, launch: Launch, deployed: bool
) -> None:
    """Trains; killed midway, the same call goes on from the last checkpoint."""
    execute(run, FinetuningWork(finetuning, manifest, compute, launch), deployed)
    get_run_logger().info("%s is trained", manifest.model_id)
