"""Train a report labeller where RadBERT's weights cannot be had, or to check it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import State, flow

from ctclip_model.device import Compute, Precision
from ctclip_model.errors import PreemptedError
from tasks.labels.reports import choose_training
from tasks.models.presets import find_preset
from tasks.settings import DATA_ROOT, LABELLER_KINDS, PRESET
from tasks.stages.stage import as_opaque, await_retry, stage_run
from tasks.stages.train_labeller import collect_labelled_reports, fit_labeller, plan_labeller_training
from tasks.training.processes import Launch


@flow(name="train-labeller")
def train_labeller(
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    kind: str = LABELLER_KINDS[0],
    hand_labels: Path | None = None,
    force: bool = False,
    device: str = "auto",
    dtype: Precision = Precision.float32,
    processes: int | None = None,
    deployed: bool = False,
) -> dict[str, Any] | State[Any]:
    """Train a labeller of a kind on the reports of the train split and their published labels, or on a file's.

    `kind` is `roberta`, of the preset's shape, or `tfidf`; `hand_labels` a CSV: AccessionNo, report_text, 18 labels.
    On a GPU, or with `processes`, torchrun trains a `roberta` apart from this process; `deployed` has the deployment
    `compute` train it, on a worker of its pool.
    """
    chosen = find_preset(preset)
    training, compute = choose_training(kind, chosen), Compute(device, dtype)
    try:
        with stage_run(data_root, "train-labeller", training.name) as run:
            reports = collect_labelled_reports(run, training, hand_labels)
            if plan_labeller_training(run, training, as_opaque(reports), force):
                fit_labeller(run, training, chosen, as_opaque(reports), compute, Launch(processes), deployed)
    except PreemptedError as error:
        return await_retry(error)
    return run.summary() | {"labeller_id": reports.labeller_id(training)}
