"""Train: a manifest from the catalogue, then CT-CLIP from the manifest and the shards alone."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import Preset
from ctclip_model.device import Compute
from tasks.labelling import find_labeller
from tasks.planning import plan_items
from tasks.runs import StageRun
from tasks.training import Manifest, config_fingerprint, describe_stale, make_manifest, run_training


@task(cache_policy=NO_CACHE)
def plan_training(run: StageRun, preset: Preset, retrain: bool) -> bool:
    """Whether to train: where the configuration has no model, or on request; never because the data moved."""
    mark = config_fingerprint(preset)
    is_due = bool(plan_items(run, run.variant, {mark: mark}, force=retrain))
    if not is_due:
        run.detail = describe_stale(run.data_root, mark)
        if run.detail:
            get_run_logger().warning("%s", run.detail)
    return is_due


@task(cache_policy=NO_CACHE)
def prepare_manifest(run: StageRun, preset: Preset, labeller: str) -> Manifest:
    """Writes down what the training reads."""
    needs_labels = preset.training.text_pretraining_samples > 0
    labeller_id = find_labeller(run.data_root, labeller).labeller_id if needs_labels else None
    manifest = make_manifest(run, preset, labeller_id)
    get_run_logger().info("%s: %d samples", manifest.model_id, manifest.count_samples)
    return manifest


@task(cache_policy=NO_CACHE)
def train_model(run: StageRun, preset: Preset, manifest: Manifest, compute: Compute) -> None:
    """Trains; killed midway, the same call goes on from the last checkpoint."""
    run_training(run, preset, manifest, compute)
    get_run_logger().info("%s is trained", manifest.model_id)
