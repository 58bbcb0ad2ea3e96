"""Train: a manifest from the catalogue, then CT-CLIP from the manifest and the shards alone."""

from __future__ import annotations

from typing import Any

from prefect import State, Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun

from ctclip_model.config import Preset
from ctclip_model.device import Compute
from ctclip_model.errors import WorkerDiedError
from tasks.launching import Launch
from tasks.orders import TrainingWork
from tasks.planning import plan_items
from tasks.runs import StageRun
from tasks.settings import LIMITS
from tasks.stages.deployed import get_done
from tasks.training import (
    Manifest,
    choose_labels,
    config_fingerprint,
    describe_stale,
    is_unfinished,
    make_manifest,
)


@task(cache_policy=NO_CACHE)
def plan_training(run: StageRun, preset: Preset, retrain: bool) -> bool:
    """Whether to train: where the configuration has no model, or on request; never because the data moved.

    Where a model was being trained again and the run was killed, that goes on.
    """
    mark = config_fingerprint(preset)
    is_due = bool(plan_items(run, run.variant, {mark: mark}, force=retrain or is_unfinished(run.data_root, mark)))
    if not is_due:
        run.detail = describe_stale(run.data_root, mark)
        if run.detail:
            get_run_logger().warning("%s", run.detail)
    return is_due


@task(cache_policy=NO_CACHE)
def prepare_manifest(run: StageRun, preset: Preset, labeller: str) -> Manifest:
    """Writes down what the training reads."""
    labeller_id = choose_labels(run.data_root, preset, labeller)
    manifest = make_manifest(run, preset, labeller_id)
    get_run_logger().info("%s: %d samples", manifest.model_id, manifest.count_samples)
    return manifest


def has_lost_its_processes(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt may help: a wrong configuration, or a loss that diverges, would fail as before."""
    return isinstance(state.result(raise_on_failure=False), WorkerDiedError)


# Of a task that trains: its processes may die, and each attempt goes on from the last checkpoint.
RETRIED: dict[str, Any] = {
    "cache_policy": NO_CACHE, "retries": LIMITS.training_retries,
    "retry_delay_seconds": LIMITS.training_retry_delay_s, "retry_condition_fn": has_lost_its_processes,
}  # fmt: skip


@task(**RETRIED)
def train_model(
    run: StageRun, preset: Preset, manifest: Manifest, compute: Compute, launch: Launch, deployed: bool
) -> None:
    """Trains; killed midway, the same call goes on from the last checkpoint."""
    get_done(run, TrainingWork(preset, manifest, compute, launch), deployed)
    get_run_logger().info("%s is trained", manifest.model_id)
