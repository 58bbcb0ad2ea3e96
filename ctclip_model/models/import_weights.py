"""Import of weights as a model folder: published files, and models trained on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from ctclip_model.config import PRESETS, VERSIONS, ExternalConfig, Preset, Recipe, compute_fingerprint
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.errors import ConfigurationError
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.encoders import make_encoder
from ctclip_model.models.entry_points import find_entry_point
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.find_model import check_model, parse_recipe
from ctclip_model.models.heads import LiPro
from ctclip_model.models.kinds import ModelKind, kinds_of_type
from ctclip_model.models.model_folder import (
    describe_label_set,
    is_model_folder,
    load_model_folder,
    save_model_folder,
    tokenizer_json,
)
from ctclip_model.models.report_labeller import ReportLabeller, read_labeller_tokenizer
from ctclip_model.models.text import check_vocabulary, read_tokenizer
from ctclip_model.models.weights import AnyModel, VolumeEncoder, load_weights
from ctclip_model.models.weights_files import find_weights_file

CUSTOM = "custom"  # recorded for a model that fits no preset, in place of the preset's name
RADBERT = "radbert"  # recorded for a labeller in the published form

_CARD = """\
# {name}

{title}, as a model folder of ctclip-rebuild{addition}.

| | |
|---|---|
{rows}

Use it with `ctclip {command}`. For research, not for diagnosis. {terms}
"""
_TERMS = """\
CT-RATE, and weights published with it or trained on
it, are under CC-BY-NC-SA 4.0. Cite Hamamci et al., arXiv:2403.17834."""
_COMPLETE = ", complete for use without a network"
_ELSEWHERE = ". Its weights are in its package, and under the package's licence"


@dataclass(frozen=True)
class Candidate:
    """A model opened for import. Its weights stay in their file until they are copied."""

    model: AnyModel
    kind: ModelKind
    preset: str
    recipe: Recipe | None  # None for a labeller, which reads no volumes
    weights: Path  # file, or index of shards, whose SHA-256 identifies the model
    tokenizer: PreTrainedTokenizerFast | None  # None: not found yet, or not needed
    label_set: LabelSet = CT_RATE_18  # the findings that the model learned

    @property
    def needs_tokenizer(self) -> bool:
        """True without a tokenizer, except for a head, which reads no text, and for an encoder of another package."""
        return self.tokenizer is None and not (self.kind.facts.has_head or self.kind.facts.is_frozen)

    @property
    def trunk(self) -> VolumeEncoder | ReportLabeller:
        """The model without the head of a LiPro."""
        return self.model.trained_model if isinstance(self.model, LiPro) else self.model

    @property
    def logit_scale(self) -> float | None:
        """The factor on similarities. None for a model without a text side."""
        return None if isinstance(self.trunk, ReportLabeller) else self.trunk.logit_scale

    def fingerprint(self, sha256: str) -> str:
        """Fingerprint of the model folder: SHA-256 of the weights file, and all settings that change results."""
        if isinstance(self.model, ExternalModel):  # has no weights here: its identity holds their digest
            return compute_fingerprint(self.kind, self.model.config.identity, VERSIONS["import-model"])
        recipe = asdict(self.recipe) if self.recipe else None
        words = tokenizer_json(self.tokenizer) if self.tokenizer else None
        learned = describe_label_set(self.label_set).values()
        return compute_fingerprint(
            sha256, self.kind, self.model.config, recipe, words, VERSIONS["import-model"], *learned
        )


def open_candidate(path: Path, *, kind: ModelKind | None = None, preset: Preset | None = None) -> Candidate:
    """Opens a model folder, a weights file or a folder with one, and finds its kind, preset and recipe.

    VocabFine has the keys of CT-CLIP: `kind` or else the file's name decides. `preset` gives the configuration of
    weights without the published widths. Raises `CheckpointError`, or `ConfigurationError` for another kind than asked.
    """
    if path.is_dir() and is_model_folder(path):
        return _open_folder(path, kind)
    weights = find_weights_file(path) if path.is_dir() else path
    model = load_weights(weights, preset)
    if isinstance(model, ReportLabeller):
        return Candidate(model, _choose_kind(model, kind, path, ""), RADBERT, None, weights, None)
    recipe, found = preset.recipe if preset else Recipe(), _choose_kind(model, kind, path, path.name)
    return Candidate(model, found, _preset_name(model, recipe), recipe, weights, None)


def open_encoder(name: str, options: Mapping[str, Any]) -> Candidate:
    """Opens an installed encoder of another package for import, by the name of its entry point.

    Raises `MissingInputError` for an encoder that is not installed, and `EncoderError` for one that fails.
    """
    _, config = make_encoder(find_entry_point(name), options)
    return Candidate(ExternalModel(config), ModelKind.external, name_preset(config), config.recipe, Path(), None)


def name_preset(config: ExternalConfig) -> str:
    """Recorded for an encoder of another package in place of a preset's name."""
    return f"{ModelKind.external}-{config.encoder}"


def read_tokenizer_for(kind: ModelKind, path: Path) -> PreTrainedTokenizerFast:
    """Reads the tokenizer in a folder or file for a kind of model. Raises `CheckpointError` or `MissingInputError`."""
    if kind is ModelKind.labeller:
        return read_labeller_tokenizer(path if path.is_dir() else path.parent)
    return read_tokenizer(path)


def write_candidate(candidate: Candidate, folder: Path, provenance: Mapping[str, str]) -> None:
    """Writes the model folder, complete or not at all.

    Raises `CheckpointError` for a recipe or tokenizer that is not the model's.
    """
    model, recipe, tokenizer = candidate.model, candidate.recipe, candidate.tokenizer
    info: dict[str, Any] = {"preset": candidate.preset} | describe_label_set(candidate.label_set)
    if isinstance(model, ReportLabeller):
        check_vocabulary(folder.name, model.config.vocab_size, tokenizer)
    else:
        assert recipe is not None, "each model that embeds volumes has a recipe"
        if isinstance(candidate.trunk, CTCLIP):
            check_model(folder.name, candidate.trunk.config, recipe, tokenizer)
        info["recipe"] = asdict(recipe)
    card = _make_card(folder.name, candidate, provenance)
    save_model_folder(folder, model, tokenizer, kind=candidate.kind, extra=info, card=card)


def _open_folder(folder: Path, kind: ModelKind | None) -> Candidate:
    loaded = load_model_folder(folder)
    model, info = loaded.model, loaded.info
    tokenizer = loaded.tokenizer if (folder / "tokenizer.json").is_file() else None
    weights, found = folder / "model.safetensors", _choose_kind(model, kind, folder, loaded.kind)
    if isinstance(model, ReportLabeller):
        return Candidate(model, found, info.get("preset", CUSTOM), None, weights, tokenizer)
    recipe = parse_recipe(folder, info)
    return Candidate(model, found, _preset_name(model, recipe), recipe, weights, tokenizer, loaded.label_set)


def _choose_kind(model: AnyModel, asked: ModelKind | None, path: Path, hint: str) -> ModelKind:
    """The kind asked for, a fine-tuned kind that the hint names, or the first kind of the model's class."""
    possible = kinds_of_type(type(model))
    if asked is not None and asked not in possible:
        raise ConfigurationError(f"--kind {asked}: {path} holds {' or '.join(possible)}")
    hinted = (kind for kind in possible if kind.facts.is_fine_tuned and kind in hint.lower())
    return asked or next(hinted, possible[0])


def _preset_name(model: AnyModel, recipe: Recipe) -> str:
    if isinstance(model.config, ExternalConfig):
        return name_preset(model.config)
    presets = (make() for make in PRESETS.values())
    return next((one.name for one in presets if (one.model, one.recipe) == (model.config, recipe)), CUSTOM)


def _make_card(name: str, candidate: Candidate, provenance: Mapping[str, str]) -> str:
    facts = dict(provenance)
    if candidate.recipe is not None:
        depth, height, width = candidate.recipe.shape
        spacing = " x ".join(f"{mm:g}" for mm in candidate.recipe.spacing_mm)
        facts["volumes"] = f"{depth} x {height} x {width} voxels of {spacing} mm (recipe {candidate.recipe.name})"
    if isinstance(candidate.trunk, ExternalModel):
        config = candidate.trunk.config
        facts |= {"encoder": config.encoder, "package": f"{config.package} {config.version}", "digest": config.digest}
        facts |= {f"option {key}": str(value) for key, value in config.options.items()}
    else:
        facts["parameters"] = f"{sum(parameter.numel() for parameter in candidate.model.parameters()):,}"
    use = f"predict VOLUME --model {name}"
    if candidate.kind.facts.is_frozen:
        use = f"embed --model {name}"
    elif candidate.kind is ModelKind.labeller:
        use = f"label --labeller {name}"
    rows = "\n".join(f"| {fact} | {value} |" for fact, value in facts.items() if value)
    is_elsewhere = candidate.kind.facts.is_frozen
    addition, terms = (_ELSEWHERE, "") if is_elsewhere else (_COMPLETE, _TERMS)
    title = candidate.kind.facts.title
    return _CARD.format(name=name, title=title, rows=rows, command=use, addition=addition, terms=terms)
