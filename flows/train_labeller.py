"""Train a small report labeller where RadBERT's weights cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from tasks.presets import find_preset
from tasks.settings import DATA_ROOT, PRESET
from tasks.stages import stage_run, whole
from tasks.stages.train_labeller import collect_labelled_reports, fit_labeller


@flow(name="train-labeller")
def train_labeller(data_root: Path = DATA_ROOT, preset: str = PRESET, force: bool = False) -> dict[str, Any]:
    """Train a labeller on the ingested reports of the train split and their published labels."""
    chosen = find_preset(preset)
    with stage_run(data_root, "train-labeller", chosen.name) as run:
        reports = collect_labelled_reports(run)
        labeller_id = fit_labeller(run, chosen, whole(reports), force)
    return run.summary() | {"labeller_id": labeller_id}
