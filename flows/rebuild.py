"""Rebuild everything: every stage in turn, each doing only what is pending."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import Flow, flow

from ctclip_model.data.names import Storage
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError
from ctclip_model.models.kinds import FINE_TUNED, find_kind
from ctclip_model.stages import PIPELINE
from flows.convert import convert
from flows.embed import embed
from flows.evaluate import evaluate
from flows.finetune import finetune
from flows.ingest import ingest
from flows.label import label
from flows.report import report
from flows.train import train
from tasks.models.find import find_model
from tasks.models.presets import find_preset
from tasks.run.publish import publish_leftovers
from tasks.settings import DATA_ROOT, DOWNLOAD_THREADS, FINETUNE, LABELLER, PRESET, RAW_CACHE_GB, STAGES
from tasks.stages.deployed import run_deployed
from tasks.training.fine_tune import find_finetuned
from tasks.training.manifest import config_fingerprint
from tasks.training.records import find_trained

FLOWS: dict[str, Flow[..., Any]] = {
    "ingest": ingest, "convert": convert, "label": label, "train": train, "embed": embed,
    "finetune": finetune, "evaluate": evaluate, "report": report,
}  # fmt: skip


@flow(name="rebuild")
def rebuild(
    source: str | None = None,
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    labeller: str = LABELLER,
    model: str | None = None,
    storage: Storage | None = None,
    revision: str | None = None,
    from_stage: str = STAGES[0],
    to_stage: str = STAGES[-1],
    finetune_kinds: tuple[str, ...] = FINETUNE,
    seed: int = 0,
    retrain: bool = False,
    force: bool = False,
    retry_rejects: bool = False,
    dask_address: str | None = None,
    device: str = "auto",
    dtype: Precision = Precision.float32,
    raw_cache_gb: float = RAW_CACHE_GB,
    keep_raw: bool = False,
    download_threads: int = DOWNLOAD_THREADS,
    max_mb_per_s: float | None = None,
    deployed: bool = False,
) -> list[dict[str, Any]]:
    """Run the stages from `from_stage` to `to_stage`; without a `source`, the one that was ingested last.

    With a `model`, such as an imported one, it is that which is embedded and evaluated, and nothing is trained.
    `deployed` runs each stage as its deployment, on a worker of that one's pool, in place of this process; unless it
    is given, each finds the data root by its own CTCLIP_DATA_ROOT.
    """
    given = locals()
    for kind in finetune_kinds:
        find_kind(kind, FINE_TUNED)
    stages = choose_stages(from_stage, to_stage, is_training=model is None)
    publish_leftovers(data_root)
    if model is not None:
        find_model(data_root, preset, model)  # fails now, and not after hours of conversion
    return [summary for stage in stages for summary in run_stage(stage, given)]


def choose_stages(first: str, last: str, *, is_training: bool = True) -> tuple[str, ...]:
    """The slice of a rebuild between two stages, both included; without those that train, where that is not asked."""
    for stage in (first, last):
        if stage not in STAGES:
            raise ConfigurationError(f"there is no stage {stage!r}; a rebuild has {', '.join(STAGES)}")
    stages = STAGES[STAGES.index(first) : STAGES.index(last) + 1]
    if not stages:
        raise ConfigurationError(f"{first} comes after {last}")
    kept = tuple(stage for stage in stages if is_training or not PIPELINE[stage].trains)
    if not kept:
        raise ConfigurationError(f"from {first} to {last} there is nothing but training, and --model asks for none")
    return kept


def run_stage(stage: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs one stage as often as a rebuild needs it, with the given parameters that it takes."""
    function = FLOWS[stage]
    summaries: list[dict[str, Any]] = []
    for particular in list_calls(stage, given):
        parameters = given | particular
        taken = {name: parameters[name] for name in function.parameters.properties if name in parameters}
        if given["deployed"]:
            if given["data_root"] == DATA_ROOT:
                del taken["data_root"]
            result = run_deployed(given["data_root"], stage, taken)
        else:
            result = function(**taken)
        summaries += result if isinstance(result, list) else [result]
    return summaries


def list_calls(stage: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """What is particular to each call of a stage.

    After training a stage works on the model of the very configuration that the rebuild is of, evaluation and report
    also on those that were fine-tuned of it.
    """
    data_root, kinds, model = given["data_root"], given["finetune_kinds"], given["model"]
    if stage == "convert":
        recipe = json.dumps(asdict(find_model(data_root, given["preset"], model).recipe)) if model else None
        return [{"source": None, "recipe": recipe}]  # ingest has recorded where each volume's file lies
    if model is not None or stage not in ("embed", "finetune", "evaluate", "report"):
        return [{}]
    preset = find_preset(given["preset"], seed=given["seed"])
    trained = find_trained(data_root, config_fingerprint(preset))
    if stage == "finetune":
        return [{"model": trained, "kind": kind} for kind in kinds]
    if stage == "embed" or trained is None:
        return [{"model": trained}]
    parent = find_model(data_root, preset.name, trained)
    finetuned = find_finetuned(data_root, parent, preset, [find_kind(kind, FINE_TUNED) for kind in kinds])
    return [{"model": model_id} for model_id in (trained, *finetuned)]
