"""Train a report labeller, in place of RadBERT's weights or to check them."""

from __future__ import annotations

from typing import Any

from prefect import State

from ctclip_model.device import Compute
from ctclip_model.errors import PreemptedError
from flows.flow_taking import flow_taking
from flows.options import TrainLabellerOptions
from tasks.labels.reports import choose_training
from tasks.models.presets import find_preset
from tasks.stages.stage import as_opaque, await_retry, stage_run
from tasks.stages.train_labeller import collect_labelled_reports, fit_labeller, plan_labeller_training
from tasks.training.processes import Launch


@flow_taking(TrainLabellerOptions)
def train_labeller(options: TrainLabellerOptions) -> dict[str, Any] | State[Any]:
    preset = find_preset(options.preset)
    training = choose_training(options.kind, preset)
    compute, launch = Compute(options.device, options.dtype), Launch(options.processes)
    try:
        with stage_run(options.data_root, "train-labeller", training.name) as run:
            reports = collect_labelled_reports(run, training, options.hand_labels)
            if plan_labeller_training(run, training, reports, options.force):
                fit_labeller(run, training, preset, as_opaque(reports), compute, launch, options.deployed)
    except PreemptedError as error:
        return await_retry(error)
    return run.summary() | {"labeller_id": reports.labeller_id(training)}
