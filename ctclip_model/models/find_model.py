"""Models that embed volumes: found by name, and loaded with the recipe, tokenizer and head that belong to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import FOLDER_WEIGHTS, PRESETS, CTCLIPConfig, Recipe
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.errors import CheckpointError, ConfigurationError, MissingInputError
from ctclip_model.json_config import parse_config
from ctclip_model.lock_files import bounded_hub_locks
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.heads import LatentClassifier, LiPro
from ctclip_model.models.kinds import ENCODERS, ModelKind, read_kind
from ctclip_model.models.model_folder import is_model_folder, load_model_folder, read_description
from ctclip_model.models.text import (
    PUBLISHED_TEXT_ENCODER,
    TOKENIZER_FILES,
    check_vocabulary,
    find_tokenizer_file,
    read_tokenizer,
)
from ctclip_model.models.weights import AnyModel, VolumeEncoder, load_weights
from ctclip_model.models.weights_files import find_weights_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, and the recipe that its volumes must go through."""

    name: str
    model: VolumeEncoder
    recipe: Recipe
    tokenizer: PreTrainedTokenizerFast | None  # None: loaded without text, or an encoder that reads texts itself
    head: LatentClassifier | None = None  # the head of a LiPro; None: zero-shot by prompts
    weights: Path = Path()  # its weights file, or an index of shards
    folder: Path | None = None  # its model folder; None: weights of another maker
    label_set: LabelSet = CT_RATE_18  # the findings that it learned


def list_models(models: Path) -> list[Path]:
    """The folders of models that embed volumes below `models`, newest first."""
    folders = [path.parent for path in models.glob("[!.]*/config.json") if _embeds_volumes(path.parent)]
    return sorted(folders, key=lambda folder: (folder / "config.json").stat().st_mtime, reverse=True)


def find_model(models: Path, name: str | None) -> Path:
    """The model folder or weights file of a name.

    Takes `models/<name>` first, then `name` as a path. Without a name, the only model in `models` that was not
    fine-tuned from another. An encoder of another package is then taken where there is nothing else. Raises
    `MissingInputError` if there is none, `ConfigurationError` if there are several.
    """
    if name is not None:
        for path in (models / name, Path(name)):
            if path.is_file() or any((path / file).is_file() for file in ("config.json", *FOLDER_WEIGHTS)):
                return path.parent if path.is_file() and _embeds_volumes(path.parent) else path
        raise MissingInputError(f"there is no model {name!r}: neither {models / name} nor a model folder or weights")
    found = list_models(models)
    trained = [folder for folder in found if _is_of_training(folder)] or found
    if not found:
        raise MissingInputError(
            f"there is no model in {models}: name one with --model, a model folder or a weights file such as "
            "CT-CLIP_v2.pt; or fetch it with `ctclip fetch-models`, or train one with `ctclip train`"
        )
    if len(trained) != 1:
        names = ", ".join(folder.name for folder in found)
        raise ConfigurationError(f"{models} has {len(found)} models, newest first: {names}; choose one with --model")
    return trained[0]


def load_model(
    path: Path, *, name: str | None = None, device: str = "cpu", with_text: bool = True, tokenizer: Path | None = None
) -> LoadedModel:
    """Loads a model folder, or weights, which have the published recipe and no tokenizer of their own.

    Weights are a file, an index of shards or a folder of another maker, such as Hugging Face's. `name` is the folder's
    or file's by default. The tokenizer of weights is `tokenizer` (a file, or its folder), one beside the weights, or
    the published one. Without `with_text`, and for a LiPro, no tokenizer is read. Raises
    `CheckpointError`, or `MissingInputError` for a missing tokenizer, and as `ExternalModel.open`.
    """
    if path.is_dir() and is_model_folder(path):
        if tokenizer is not None:
            raise ConfigurationError(f"{path} has a tokenizer of its own: leave --tokenizer out")
        loaded = load_model_folder(path, device=device)
        own = loaded.tokenizer if with_text and isinstance(loaded.model, CTCLIP) else None
        found = _check_loaded(name or path.resolve().name, loaded.model, parse_recipe(path, loaded.info), own)
        return replace(found, folder=path, weights=path / "model.safetensors", label_set=loaded.label_set)
    weights = find_weights_file(path) if path.is_dir() else path
    model = load_weights(weights)
    has_prompts = with_text and isinstance(model, CTCLIP)
    reader = read_tokenizer(_find_tokenizer(weights, tokenizer)) if has_prompts else None
    return replace(_check_loaded(name or path.stem, model.to(device), Recipe(), reader), weights=weights)


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a model folder, without loading the model. Raises `CheckpointError`."""
    return parse_recipe(folder, read_description(folder).get("info", {}))


def parse_recipe(folder: Path, info: Mapping[str, Any]) -> Recipe:
    """The recipe in the `info` of a model folder's config.json. Older folders name their preset instead.

    Raises `CheckpointError`.
    """
    if "recipe" in info:
        try:
            return parse_config(Recipe, info["recipe"], "recipe")
        except ConfigurationError as error:
            raise CheckpointError(f"{folder}: its config.json holds no usable recipe ({error})") from error
    if info.get("preset") in PRESETS:
        return PRESETS[info["preset"]]().recipe
    raise CheckpointError(f"{folder}: its config.json names neither a recipe nor a preset of {', '.join(PRESETS)}")


def check_model(name: str, config: CTCLIPConfig, recipe: Recipe, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Raises `CheckpointError` for a recipe or tokenizer that is not the model's, before a volume is read."""
    expected = (config.vision.depth, config.vision.image_size, config.vision.image_size)
    if tuple(recipe.shape) != expected:
        raise CheckpointError(
            f"{name}: recipe {recipe.name!r} makes volumes of {_by(recipe.shape)} voxels, and the model takes "
            f"{_by(expected)}"
        )
    check_vocabulary(name, config.text.vocab_size, tokenizer)


def _kind(folder: Path) -> ModelKind | None:
    try:
        return read_kind(read_description(folder))
    except (CheckpointError, AttributeError, KeyError, ValueError):
        return None


def _embeds_volumes(folder: Path) -> bool:
    return _kind(folder) in ENCODERS


def _is_of_training(folder: Path) -> bool:
    kind = _kind(folder)
    return kind is not None and not kind.facts.is_fine_tuned and not kind.facts.is_frozen


def _check_loaded(name: str, model: AnyModel, recipe: Recipe, tokenizer: PreTrainedTokenizerFast | None) -> LoadedModel:
    encoders = model.trained_model if isinstance(model, LiPro) else model
    if isinstance(encoders, ExternalModel):
        encoders.open()  # complains before a volume is read
    elif isinstance(encoders, CTCLIP):
        check_model(name, encoders.config, recipe, tokenizer)
    else:
        raise CheckpointError(f"{name}: holds a {type(model).__name__}, which encodes no volume")
    return LoadedModel(name, encoders, recipe, tokenizer, model.classifier if isinstance(model, LiPro) else None)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _find_tokenizer(weights: Path, given: Path | None) -> Path:
    if given is not None and given.is_file():
        return given
    if found := find_tokenizer_file(given or weights.parent):
        return found
    if given is not None:
        raise MissingInputError(f"{given}: holds no {' and no '.join(TOKENIZER_FILES)}")
    cached = try_to_load_from_cache(PUBLISHED_TEXT_ENCODER, "vocab.txt")
    if isinstance(cached, str):
        return Path(cached)
    logger.warning("fetching the tokenizer of %s from the Hugging Face Hub", PUBLISHED_TEXT_ENCODER)
    try:
        with bounded_hub_locks():
            return Path(hf_hub_download(PUBLISHED_TEXT_ENCODER, "vocab.txt"))
    except OSError as error:
        raise MissingInputError(
            f"{weights} needs a tokenizer, and the Hugging Face Hub is out of reach: put vocab.txt of "
            f"{PUBLISHED_TEXT_ENCODER} beside it, or name its folder with --tokenizer"
        ) from error
