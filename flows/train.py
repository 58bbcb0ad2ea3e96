"""Train CT-CLIP on the converted volumes and their reports."""

from __future__ import annotations

from typing import Any

from prefect import State

from ctclip_model.errors import PreemptedError
from flows.flow_taking import flow_taking
from flows.options import TrainOptions
from tasks.models.presets import choose_compute, find_preset
from tasks.stages.stage import await_retry, stage_run
from tasks.stages.train import plan_training, prepare_manifest, train_model
from tasks.training.ct_clip import find_named_labels, name_variant
from tasks.training.processes import Launch


@flow_taking(TrainOptions)
def train(options: TrainOptions) -> dict[str, Any] | State[Any]:
    preset = find_preset(
        options.preset, seed=options.seed, validate_every=options.validate_every,
        report_sections=options.report_sections,
    )  # fmt: skip
    compute = choose_compute(
        preset, options.device, options.dtype, options.recompute, compile=options.compile, sharded=options.sharded,
        encoded_at_once=options.encoded_at_once, tensorboard=options.tensorboard,
    )  # fmt: skip
    launch = Launch(options.processes, options.nodes, options.rendezvous)
    try:
        variant = name_variant(preset.name, options.labels_of)
        source = find_named_labels(options.data_root, preset, options.labels_of)
        with stage_run(options.data_root, "train", variant) as run:
            if plan_training(run, preset, options.retrain, source):
                manifest = prepare_manifest(run, preset, options.labeller, source)
                train_model(run, preset, manifest, compute, launch, options.deployed, source)
    except PreemptedError as error:
        return await_retry(error)
    return run.summary()
