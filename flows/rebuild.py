"""Rebuild everything: every stage in turn, each doing only pending work."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from prefect import Flow

from ctclip_model.config import Preset
from ctclip_model.errors import ConfigurationError
from ctclip_model.models.kinds import FINE_TUNED, find_kind
from ctclip_model.stages import PIPELINE
from flows.convert import convert
from flows.embed import embed
from flows.evaluate import evaluate
from flows.finetune import finetune
from flows.flow_taking import flow_taking, one_heartbeat
from flows.ingest import ingest
from flows.label import label
from flows.options import RebuildOptions
from flows.report import report
from flows.train import train
from tasks.labels.label_sources import LabelSource, find_label_source
from tasks.models.find import find_model
from tasks.models.presets import find_preset
from tasks.report.pages import refuse_itself
from tasks.run.publish import publish_leftovers
from tasks.run.splits import require_split
from tasks.settings import DATA_ROOT, PUBLISHED_LABELS, STAGES
from tasks.stages.announce import forget, read_untold
from tasks.stages.deployed import run_deployed
from tasks.stages.report import refreshed_index
from tasks.training.ct_clip import find_named_labels
from tasks.training.fine_tune import find_finetuned
from tasks.training.manifest import config_fingerprint
from tasks.training.records import find_trained

FLOWS: dict[str, Flow[..., Any]] = {
    flow.name: flow for flow in (ingest, convert, label, train, embed, finetune, evaluate, report)
}


@flow_taking(RebuildOptions)
def rebuild(options: RebuildOptions) -> list[dict[str, Any]]:
    for kind in options.finetune_kinds:
        find_kind(kind, FINE_TUNED)
    stages = choose_stages(options.from_stage, options.to_stage, is_training=options.model is None)
    publish_leftovers(options.data_root)
    if options.model is not None:
        find_model(options.data_root, options.preset, options.model)  # fails now, and not after hours of conversion
    if options.labels_of is not None:
        find_label_source(options.data_root, options.labels_of)  # likewise
    if options.against is not None:
        find_model(options.data_root, options.preset, options.against)
        refuse_itself(options.model or "", options.against)
    with refreshed_index(options.data_root), one_heartbeat():
        summaries = run_stage("ingest", options) if stages[0] == "ingest" else []
        changes = read_untold(options.data_root)
        if "convert" in stages and "train" in stages:
            require_training_data(options)  # fails now, and not after hours of conversion
        summaries += [summary for stage in stages if stage != "ingest" for summary in run_stage(stage, options)]
        forget(options.data_root, changes)
    return summaries


def require_training_data(options: RebuildOptions) -> None:
    """Raises `MissingInputError` if a model is to be trained and the train split is missing."""
    if options.retrain or find_model_of(options) is None:
        require_split(options.data_root, "train")


def find_model_of(options: RebuildOptions) -> str | None:
    """The newest CT-CLIP of the rebuild's configuration. None: it is not trained yet."""
    preset, source = find_configuration(options)
    return find_trained(options.data_root, config_fingerprint(preset, source))


def find_configuration(options: RebuildOptions) -> tuple[Preset, LabelSource | None]:
    """The preset that a rebuild trains by, and the labels that this training names, if it reads any."""
    preset = find_preset(options.preset, seed=options.seed, report_sections=options.report_sections)
    named = options.labels_of if preset.training.reads_labels else None
    return preset, find_named_labels(options.data_root, preset, named)


def choose_stages(first: str, last: str, *, is_training: bool = True) -> tuple[str, ...]:
    """Stages of a rebuild from the first to the last, both included, and those that train only if `is_training`.

    Raises `ConfigurationError` for an unknown stage, or if no stage remains.
    """
    for stage in (first, last):
        if stage not in STAGES:
            raise ConfigurationError(f"there is no stage {stage!r}: a rebuild has {', '.join(STAGES)}")
    stages = STAGES[STAGES.index(first) : STAGES.index(last) + 1]
    if not stages:
        raise ConfigurationError(f"{first} comes after {last}")
    kept = tuple(stage for stage in stages if is_training or not PIPELINE[stage].trains)
    if not kept:
        raise ConfigurationError(f"from {first} to {last} every stage trains, and --model excludes training")
    return kept


def run_stage(stage: str, options: RebuildOptions) -> list[dict[str, Any]]:
    """Runs a stage once for each of its calls, here or as its deployment, and returns the summaries of its runs."""
    shared = {name: value for name, value in vars(options).items() if takes(stage, name) and name != "labels_of"}
    if options.deployed and options.data_root == DATA_ROOT:
        del shared["data_root"]  # a worker's own CTCLIP_DATA_ROOT holds
    summaries: list[dict[str, Any]] = []
    for call in list_calls(stage, options):
        if options.deployed:
            summaries += run_deployed(options.data_root, stage, shared | call)
        else:
            result = FLOWS[stage](**shared | call)
            summaries += result if isinstance(result, list) else [result]
    return summaries


def list_calls(stage: str, options: RebuildOptions) -> list[dict[str, Any]]:
    """Parameters of each call of a stage, beside those that it shares with the rebuild.

    The stages after the training work on the model of the rebuild's configuration. Evaluation and report also work on
    the models that were fine-tuned from it. Named labels are scored beside the published ones.
    """
    if stage == "convert":
        return [{"source": None, "recipe": _describe_recipe(options)}]  # the ingest has recorded the files' addresses
    if stage == "train":
        _, source = find_configuration(options)
        return [{"labels_of": None if source is None else source.name}]
    if not takes(stage, "model"):
        return [{}]
    labels = {"labels_of": options.labels_of or PUBLISHED_LABELS}
    if stage == "finetune":
        trained = find_model_of(options)
        return [{"model": trained, "kind": kind} | labels for kind in options.finetune_kinds]
    models = [{}] if options.model is not None else [{"model": model_id} for model_id in list_models(stage, options)]
    if options.against is not None and takes(stage, "against"):  # the other model's own page opens without differences
        models = [model | ({"against": None} if model.get("model") == options.against else {}) for model in models]
    if options.labels_of is None or not takes(stage, "labels_of"):
        return models
    return [model | scored for model in models for scored in ({}, labels)]


def list_models(stage: str, options: RebuildOptions) -> list[str | None]:
    """Models that a stage after the training works on: the trained one, and those that were fine-tuned from it."""
    trained = find_model_of(options)
    if stage == "embed" or trained is None:
        return [trained]
    preset, _ = find_configuration(options)
    parent = find_model(options.data_root, preset.name, trained)
    kinds = [find_kind(kind, FINE_TUNED) for kind in options.finetune_kinds]
    source = find_label_source(options.data_root, options.labels_of or PUBLISHED_LABELS)
    return [trained, *find_finetuned(options.data_root, parent, preset, kinds, source)]


def takes(stage: str, parameter: str) -> bool:
    """True if the flow of a stage has the parameter."""
    return parameter in FLOWS[stage].parameters.properties


def _describe_recipe(options: RebuildOptions) -> str | None:
    """Recipe of the given model as JSON. None: the recipe of the preset."""
    if options.model is None:
        return None
    return json.dumps(asdict(find_model(options.data_root, options.preset, options.model).recipe))
