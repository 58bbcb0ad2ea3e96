"""Train: a manifest from the catalogue, then CT-CLIP from the manifest and the shards."""

from __future__ import annotations

from dataclasses import replace

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import Preset
from ctclip_model.device import Compute
from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.job import Manifest, TrainingJob
from tasks.labels.label_sources import LabelSource
from tasks.models.record import note_held_out
from tasks.run.pending import plan_items
from tasks.run.splits import require_split
from tasks.run.stage_run import StageRun
from tasks.stages.deployed import execute
from tasks.stages.retries import RETRIED
from tasks.training.ct_clip import choose_labels, make_manifest
from tasks.training.manifest import config_fingerprint
from tasks.training.orders import TrainingWork
from tasks.training.processes import Launch
from tasks.training.records import describe_stale, discard_recorded_state, must_train_again


def plan_training(run: StageRun, preset: Preset, retrain: bool, source: LabelSource | None = None) -> bool:
    """True if the configuration, a preset and the labels that it names, has no model, or on request."""
    return plan_model(run, config_fingerprint(preset, source), retrain)


def plan_model(run: StageRun, fingerprint: str, retrain: bool) -> bool:
    """Plans a training. True if no model has the fingerprint, if it is lost, on request, or after an interruption.

    Changed data never makes a training due. The model is then stale, which the run's detail says.
    """
    discard_recorded_state(run.data_root, fingerprint)
    force = retrain or must_train_again(run.data_root, fingerprint)
    if plan_items(run, run.variant, {fingerprint: fingerprint}, force=force):
        return True
    run.detail = describe_stale(run.data_root, fingerprint)
    if run.detail:
        get_run_logger().warning("%s", run.detail)
    return False


@task(cache_policy=NO_CACHE)
def prepare_manifest(run: StageRun, preset: Preset, labeller: str, source: LabelSource | None = None) -> Manifest:
    """Writes the manifest of the training samples, with the labels that the training names, or the labeller's."""
    require_split(run.data_root, "train")
    labels_of = choose_labels(run.data_root, preset, labeller) if source is None else source.name
    manifest = make_manifest(run, preset, labels_of, source)
    get_run_logger().info("%s: %d samples", manifest.model_id, manifest.count_samples)
    return manifest


@task(**RETRIED)
def train_model(
    run: StageRun, preset: Preset, manifest: Manifest, compute: Compute, launch: Launch, deployed: bool,
    source: LabelSource | None = None,
) -> None:  # fmt: skip
    """Trains the model. A rerun of an interrupted training goes on from the last checkpoint."""
    job = TrainingJob(ModelKind.ct_clip, manifest, preset, compute)
    if source is not None:
        job = replace(job, labels_of=source.name, label_set=source.label_set)
    execute(run, TrainingWork(job, launch), deployed)
    note_held_out(
        run, manifest.model_id, "no scan was held out to score it: see --validate-every and `ctclip evaluate`"
    )
    get_run_logger().info("%s is trained", manifest.model_id)
