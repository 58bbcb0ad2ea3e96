"""Model folders: config.json, model.safetensors, tokenizer.json, and a model card and metrics if there are any.

An evaluation adds decisions.json (`ctclip_model.evaluation.decisions`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import CTCLIPConfig, ExternalConfig, LabellerConfig
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.errors import CheckpointError, ConfigurationError, MissingInputError
from ctclip_model.files import replace_folder
from ctclip_model.json_config import parse_config
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.heads import LatentClassifier, LiPro
from ctclip_model.models.kinds import ModelKind, kinds_of_type, read_kind
from ctclip_model.models.report_labeller import ReportLabeller
from ctclip_model.models.weights import HEAD, AnyModel, VolumeEncoder, fill_model, is_finite, read_weights

M = TypeVar("M", CTCLIP, LiPro, ExternalModel, ReportLabeller, VolumeEncoder)
MODEL_TYPES: dict[str, type[AnyModel]] = {
    model_type.__name__: model_type for model_type in (CTCLIP, LiPro, ExternalModel, ReportLabeller)
}


@dataclass(frozen=True)
class ModelFolder(Generic[M]):
    """The content of a model folder. `info` holds facts of its maker, such as the parent or the recipe.

    `label_set` has the findings that the model learned. A LiPro's head has an output for each of them.
    """

    folder: Path
    kind: ModelKind
    model: M
    config: Any
    info: dict[str, Any]
    special_tokens: dict[str, str]
    label_set: LabelSet = CT_RATE_18

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, read on first use: embedding of volumes and LiPro need none.

        Raises `MissingInputError` for a missing file, `CheckpointError` for a damaged one.
        """
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise MissingInputError(f"{self.folder} has no tokenizer: put the tokenizer.json of its texts there")
        try:
            return PreTrainedTokenizerFast(tokenizer_file=str(path), **self.special_tokens)
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise CheckpointError(f"{self.folder}: its tokenizer.json cannot be read ({error})") from error


def save_model_folder(
    folder: Path | str,
    model: AnyModel,
    tokenizer: PreTrainedTokenizerFast | None,
    *,
    kind: ModelKind | None = None,
    extra: Mapping[str, Any] | None = None,
    card: str | None = None,
    weights: Mapping[str, Any] | None = None,
    metrics: pa.Table | None = None,
) -> None:
    """Writes a model folder, complete or not at all. It replaces a folder of the same name.

    `kind` is the first one of the model's class by default. `extra` are facts for JSON, `card` is the text of a model
    card, `metrics` the curve of a training. `weights` replace the model's own, which are a share of them if it is
    split over processes. A model that reads no text needs no tokenizer.
    """
    folder = Path(folder)
    description = {
        "kind": kind or kinds_of_type(type(model))[0],
        "config": dataclasses.asdict(model.config),
        "special_tokens": tokenizer.special_tokens_map if tokenizer else {},
        "info": dict(extra or {}),
    }
    with replace_folder(folder) as temporary:
        tensors = {key: value.detach().cpu().contiguous() for key, value in (weights or model.state_dict()).items()}
        weights_file = temporary / "model.safetensors"
        weights_file.touch()
        mode = weights_file.stat().st_mode  # as the umask allows
        save_file(tensors, weights_file, _describe_encoder(model))
        weights_file.chmod(mode)  # safetensors lets only the owner read
        if tokenizer is not None:
            (temporary / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
        if metrics is not None:
            pq.write_table(metrics, temporary / "metrics.parquet")
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")
        (temporary / "config.json").write_text(json.dumps(description, indent=2), "utf-8")


def _read_no_weights(path: Path, config: ExternalConfig) -> dict[str, Tensor]:
    """No tensors, of a weights file that stands for an encoder. Raises `CheckpointError` for one of another encoder."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # parsers of damaged files raise anything
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if metadata.get("encoder") != _identify(config):
        raise CheckpointError(f"{path}: stands for another encoder than config.json beside it: import it again")
    return {}


def _identify(config: ExternalConfig) -> str:
    return json.dumps(config.identity, sort_keys=True)


def _describe_encoder(model: AnyModel) -> dict[str, str] | None:
    """Metadata of a weights file without a tensor: the file's SHA-256 moves with the encoder that it stands for."""
    if not isinstance(model, ExternalModel):
        return None
    return {"encoder": _identify(model.config)}  # one key: several come in any order


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> str:
    """A tokenizer as the text of `tokenizer.json`, without the padding and truncation of its last call."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    text: str = backend.to_str(pretty=True)
    return text


def read_description(folder: Path) -> dict[str, Any]:
    """The object in a model folder's config.json. Raises `CheckpointError`."""
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: is not a model folder ({type(error).__name__}: {error})") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{folder}: is not a model folder (config.json holds no object)")
    return description


def describe_label_set(label_set: LabelSet) -> dict[str, Any]:
    """The fact of a model folder's `info` that names its findings. The built-in set is no fact."""
    return {} if label_set.is_built_in else {"label_set": dataclasses.asdict(label_set)}


def read_label_set_of(folder: Path) -> LabelSet:
    """The label set that the model of a folder learned, without loading the model. Raises `CheckpointError`."""
    return parse_label_set(folder, read_description(folder).get("info", {}))


def parse_label_set(folder: Path, info: Mapping[str, Any]) -> LabelSet:
    """The label set in the `info` of a model folder's config.json. Raises `CheckpointError`."""
    if "label_set" not in info:
        return CT_RATE_18
    try:
        return parse_config(LabelSet, info["label_set"], "label_set")
    except ConfigurationError as error:
        raise CheckpointError(f"{folder}: its config.json holds no usable label set ({error})") from error


def is_external(folder: Path) -> bool:
    """True for a model folder whose volumes are encoded by another package. Raises `CheckpointError`."""
    config = read_description(folder).get("config")
    return isinstance(config, dict) and "encoder" in config


def is_model_folder(folder: Path) -> bool:
    """True for a folder that this project wrote, and not for weights in a folder of Hugging Face or without a config.

    Raises `CheckpointError` for a damaged config.json.
    """
    return (folder / "config.json").exists() and "kind" in read_description(folder)


@overload
def load_model_folder(folder: Path | str, *, device: str = "cpu") -> ModelFolder[Any]: ...
@overload
def load_model_folder(folder: Path | str, model_type: type[M], *, device: str = "cpu") -> ModelFolder[M]: ...
def load_model_folder(
    folder: Path | str, model_type: type[Any] | None = None, *, device: str = "cpu"
) -> ModelFolder[Any]:
    """Loads a model folder, in evaluation mode.

    Raises `CheckpointError` if the folder is incomplete or damaged, or holds another model than `model_type`.
    """
    folder = Path(folder)
    description = read_description(folder)
    try:
        kind, fields, tokens = read_kind(description), description["config"], description["special_tokens"]
        found = MODEL_TYPES[kind.facts.model_type]
        config = parse_config(_config_type(found, fields), fields, "config")
        info = {name: value for name, value in description.get("info", {}).items() if name != "kind"}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: is not a model folder ({type(error).__name__}: {error})") from error
    if model_type is not None and found is not model_type:
        raise CheckpointError(f"{folder}: holds a {found.__name__}, not a {model_type.__name__}")
    path = folder / "model.safetensors"
    label_set = parse_label_set(folder, info)
    settings = {"findings": len(label_set)} if found is LiPro else {}
    weights = _read_no_weights(path, config) if found is ExternalModel else read_weights(path)
    model = fill_model(found, config, weights, path, **settings)
    return ModelFolder(folder, kind, model.to(device), config, info, tokens, label_set)


def _config_type(model_type: type[AnyModel], fields: Any) -> type[Any]:
    if model_type is ExternalModel or (model_type is LiPro and "encoder" in fields):
        return ExternalConfig
    return LabellerConfig if model_type is ReportLabeller else CTCLIPConfig


def load_encoders(folder: Path | str, *, device: str = "cpu") -> ModelFolder[VolumeEncoder]:
    """Loads the CT-CLIP or the encoder of another package of a model folder, which may be a part of a LiPro.

    Raises `CheckpointError`, and as `ExternalModel.open`.
    """
    loaded = load_model_folder(folder, device=device)
    if isinstance(loaded.model, LiPro):
        loaded = dataclasses.replace(loaded, model=loaded.model.trained_model)
    if isinstance(loaded.model, ExternalModel):
        loaded.model.open()
    elif not isinstance(loaded.model, CTCLIP):
        raise CheckpointError(f"{folder}: holds a {type(loaded.model).__name__}, which encodes no volume")
    return loaded


def load_head(folder: Path | str) -> LatentClassifier:
    """Loads the head of a LiPro folder, in evaluation mode, without the encoders. Raises `CheckpointError`."""
    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(f"{HEAD}{name}") for name in ("weight", "bias")}
        head = LatentClassifier(weights["weight"].shape[1], findings=len(read_label_set_of(path.parent)))
        head.load_state_dict(weights)
        if not all(is_finite(values) for values in weights.values()):
            raise ValueError("NaN or infinite weights")
    except Exception as error:  # parsers of damaged files raise anything
        raise CheckpointError(f"{path}: holds no head of a LiPro ({type(error).__name__}: {error})") from error
    return head.eval()
