"""Train CT-CLIP on the converted volumes and their reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import State, flow

from ctclip_model.device import Precision
from ctclip_model.errors import PreemptedError
from tasks.models.presets import choose_compute, find_preset
from tasks.settings import DATA_ROOT, LABELLER, PRESET
from tasks.stages.stage import await_retry, stage_run
from tasks.stages.train import plan_training, prepare_manifest, train_model
from tasks.training.processes import Launch


@flow(name="train")
def train(
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    labeller: str = LABELLER,
    seed: int = 0,
    retrain: bool = False,
    device: str = "auto",
    dtype: Precision = Precision.float32,
    recompute: bool | None = None,
    compile: bool = False,
    processes: int | None = None,
    nodes: int = 1,
    rendezvous: str | None = None,
    sharded: bool = False,
    encoded_at_once: int | None = None,
    validate_every: int = 0,
    tensorboard: bool = False,
    deployed: bool = False,
) -> dict[str, Any] | State[Any]:
    """Train where the configuration has no model yet; a model whose data moved is stale, and kept unless `retrain`.

    `recompute` saves memory and costs time; the preset says whether, unless it is given. `compile` is PyTorch's. On a
    GPU, or with `processes`, torchrun trains apart from this process; `sharded` is FSDP2. `encoded_at_once` volumes
    are in memory, however large the batch. `deployed` has the deployment `compute` train, on a worker of its pool.
    """
    chosen = find_preset(preset, seed=seed, validate_every=validate_every)
    compute = choose_compute(
        chosen, device, dtype, recompute, compile=compile, sharded=sharded, encoded_at_once=encoded_at_once,
        tensorboard=tensorboard,
    )  # fmt: skip
    launch = Launch(processes, nodes, rendezvous)
    try:
        with stage_run(data_root, "train", chosen.name) as run:
            if plan_training(run, chosen, retrain):
                manifest = prepare_manifest(run, chosen, labeller)
                train_model(run, chosen, manifest, compute, launch, deployed)
    except PreemptedError as error:
        return await_retry(error)
    return run.summary()
