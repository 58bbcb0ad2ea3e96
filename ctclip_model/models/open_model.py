"""Which model a name means, and all that it takes to use it on a volume: weights, recipe, tokenizer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import PRESETS, CTCLIPConfig, Recipe
from ctclip_model.errors import CheckpointError, ConfigurationError, MissingInputError
from ctclip_model.models.checkpoint import AnyModel, load_model_folder, load_weights
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.heads import LatentClassifier, LiPro
from ctclip_model.models.kinds import ENCODERS, FINE_TUNED, ModelKind, read_kind
from ctclip_model.models.text import PUBLISHED_TEXT_ENCODER, TOKENIZER_FILES, find_tokenizer_file, read_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedModel:
    """A model in evaluation mode on its device; `recipe` is what its volumes must go through."""

    name: str
    model: CTCLIP
    recipe: Recipe
    tokenizer: PreTrainedTokenizerFast | None  # None where nobody asked for one
    head: LatentClassifier | None = None  # a LiPro's; without one, prompts are asked


def list_models(models: Path) -> list[Path]:
    """The folders of CT-CLIP models below `models`, newest first."""
    folders = [path.parent for path in models.glob("[!.]*/config.json") if _embeds_volumes(path.parent)]
    return sorted(folders, key=lambda folder: (folder / "config.json").stat().st_mtime, reverse=True)


def find_model(models: Path, name: str | None) -> Path:
    """The folder or the weights file that is meant: `models/<name>`, else the path `name`; without one the only model.

    Raises `MissingInputError` if there is no such, `ConfigurationError` if several could be meant.
    """
    if name is not None:
        for path in (models / name, Path(name)):
            if path.is_file() or (path / "config.json").is_file():
                return _whole(path)
        raise MissingInputError(f"there is no model {name!r}: neither {models / name} nor a model folder or weights")
    found = list_models(models)
    trained = [folder for folder in found if not _is_fine_tuned(folder)] or found
    if not found:
        raise MissingInputError(
            f"there is no model in {models}: name one with --model, a model folder or a weights file such as "
            "CT-CLIP_v2.pt; or fetch it with `ctclip fetch-models`, or train one with `ctclip train`"
        )
    if len(trained) != 1:
        names = ", ".join(folder.name for folder in found)
        raise ConfigurationError(f"{models} has {len(found)} models, newest first: {names}; choose one with --model")
    return trained[0]  # others were fine-tuned of it


def open_model(
    path: Path, *, device: str = "cpu", with_text: bool = True, tokenizer: Path | None = None
) -> OpenedModel:
    """Opens a model folder or a weights file; the latter is of the published recipe and has no tokenizer of its own.

    Its tokenizer is `tokenizer` (a file, or the folder of one), one beside it, or the published one. `with_text` says
    whether it is needed at all; a LiPro, which asks no prompts, never needs one. Raises `CheckpointError`, or
    `MissingInputError` where no tokenizer is to be had.
    """
    if path.is_dir():
        if tokenizer is not None:
            raise ConfigurationError(f"{path} has a tokenizer of its own: leave --tokenizer out")
        loaded = load_model_folder(path, device=device)
        own = loaded.tokenizer if with_text and isinstance(loaded.model, CTCLIP) else None
        return _opened(path.resolve().name, loaded.model, read_recipe(path, loaded.info), own)
    model = load_weights(path)
    has_prompts = with_text and isinstance(model, CTCLIP)
    reader = read_tokenizer(_find_tokenizer(path, tokenizer)) if has_prompts else None
    return _opened(path.stem, model.to(device), Recipe(), reader)


def _description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def _kind(folder: Path) -> ModelKind | None:
    try:
        return read_kind(_description(folder))
    except (AttributeError, KeyError, ValueError):
        return None


def _embeds_volumes(folder: Path) -> bool:
    return _kind(folder) in ENCODERS


def _is_fine_tuned(folder: Path) -> bool:
    return _kind(folder) in FINE_TUNED


def _opened(name: str, model: AnyModel, recipe: Recipe, tokenizer: PreTrainedTokenizerFast | None) -> OpenedModel:
    encoders = model.trained_model if isinstance(model, LiPro) else model
    if not isinstance(encoders, CTCLIP):
        raise CheckpointError(f"{name}: holds a {type(model).__name__}, which encodes no volume")
    check_model(name, encoders.config, recipe, tokenizer)
    return OpenedModel(name, encoders, recipe, tokenizer, model.classifier if isinstance(model, LiPro) else None)


def _whole(path: Path) -> Path:
    """The model folder that a weights file belongs to, where it belongs to one."""
    return path.parent if path.is_file() and _embeds_volumes(path.parent) else path


def open_recipe(folder: Path) -> Recipe:
    """The recipe of a model folder, without opening the model."""
    return read_recipe(folder, _description(folder).get("info", {}))


def read_recipe(folder: Path, info: Mapping[str, Any]) -> Recipe:
    """The recipe that a folder keeps; older ones keep the name of their preset alone."""
    if "recipe" in info:
        try:
            return Recipe.from_fields(info["recipe"])
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder}: its config.json holds no usable recipe ({error})") from error
    if info.get("preset") in PRESETS:
        return PRESETS[info["preset"]]().recipe
    raise CheckpointError(f"{folder}: its config.json names neither a recipe nor a preset of {', '.join(PRESETS)}")


def check_model(name: str, config: CTCLIPConfig, recipe: Recipe, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Refuses what would fail, or would embed nonsense, in the middle of a volume."""
    expected = (config.vision.depth, config.vision.image_size, config.vision.image_size)
    if tuple(recipe.shape) != expected:
        raise CheckpointError(
            f"{name}: recipe {recipe.name!r} makes volumes of {_by(recipe.shape)} voxels, and the model takes "
            f"{_by(expected)}"
        )
    check_vocabulary(name, config.text.vocab_size, tokenizer)


def check_vocabulary(name: str, words: int, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Refuses a tokenizer of words that the text encoder does not know."""
    if tokenizer is not None and len(tokenizer) > words:
        raise CheckpointError(f"{name}: its text encoder knows {words} tokens, and the tokenizer has {len(tokenizer)}")


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
        return Path(hf_hub_download(PUBLISHED_TEXT_ENCODER, "vocab.txt"))
    except OSError as error:
        raise MissingInputError(
            f"{weights} needs a tokenizer, and the Hugging Face Hub is out of reach: put vocab.txt of "
            f"{PUBLISHED_TEXT_ENCODER} beside it, or name its folder with --tokenizer"
        ) from error
