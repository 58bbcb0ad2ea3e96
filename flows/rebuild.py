"""Rebuild everything: every stage in turn, each doing only what is pending."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Flow, flow

from ctclip_model.data.names import Storage
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError
from flows.convert import convert
from flows.embed import embed
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.label import label
from flows.report import report
from flows.train import train
from tasks.presets import find_preset
from tasks.settings import DATA_ROOT, LABELLER, PRESET, STAGES
from tasks.training import find_trained

FLOWS: dict[str, Flow[..., Any]] = {
    "ingest": ingest, "convert": convert, "label": label, "train": train, "embed": embed, "evaluate": evaluate,
    "report": report,
}  # fmt: skip


@flow(name="rebuild")
def rebuild(
    source: str | None = None,
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    labeller: str = LABELLER,
    storage: Storage | None = None,
    from_stage: str = STAGES[0],
    to_stage: str = STAGES[-1],
    seed: int = 0,
    retrain: bool = False,
    force: bool = False,
    retry_rejects: bool = False,
    dask_address: str | None = None,
    device: str = "auto",
    dtype: Precision = Precision.float32,
) -> list[dict[str, Any]]:
    """Run the stages from `from_stage` to `to_stage`; without a `source`, the one that was ingested last."""
    given = locals()
    return [run_stage(stage, given) for stage in choose_stages(from_stage, to_stage)]


def choose_stages(first: str, last: str) -> tuple[str, ...]:
    """The slice of a rebuild between two stages, both included."""
    for stage in (first, last):
        if stage not in STAGES:
            raise ConfigurationError(f"there is no stage {stage!r}; a rebuild has {', '.join(STAGES)}")
    stages = STAGES[STAGES.index(first) : STAGES.index(last) + 1]
    if not stages:
        raise ConfigurationError(f"{first} comes after {last}")
    return stages


def run_stage(stage: str, given: dict[str, Any]) -> dict[str, Any]:
    """Runs one stage in this process, with those of the given parameters that it takes.

    What comes after training works on the model of the very configuration that the rebuild is of.
    """
    function = FLOWS[stage]
    if "model" in function.parameters.properties:
        given = given | {"model": find_trained(given["data_root"], find_preset(given["preset"], seed=given["seed"]))}
    if stage == "convert":
        given = given | {"source": None}  # ingest has recorded where each volume's file lies
    return function(**{name: given[name] for name in function.parameters.properties if name in given})
