"""Train a report labeller where RadBERT's weights cannot be had, or to check it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from tasks.labelling import choose_training
from tasks.presets import find_preset
from tasks.settings import DATA_ROOT, LABELLER_KINDS, PRESET
from tasks.stages import stage_run, whole
from tasks.stages.train_labeller import collect_labelled_reports, fit_labeller


@flow(name="train-labeller")
def train_labeller(
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    kind: str = LABELLER_KINDS[0],
    hand_labels: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Train a labeller of a kind on the reports of the train split and their published labels, or on a file's.

    `kind` is `roberta`, of the preset's shape, or `tfidf`; `hand_labels` a CSV: AccessionNo, report_text, 18 labels.
    """
    training = choose_training(kind, find_preset(preset))
    with stage_run(data_root, "train-labeller", training.name) as run:
        reports = collect_labelled_reports(run, hand_labels)
        labeller_id = fit_labeller(run, training, whole(reports), force)
    return run.summary() | {"labeller_id": labeller_id}
