"""Weights on disk: the published files, and our model folders (config.json, model.safetensors, tokenizer.json)."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, overload

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import CTCLIPConfig, LabellerConfig, Preset, TextConfig, VisionConfig
from ctclip_model.errors import CheckpointError, MissingInputError
from ctclip_model.files import replace_folder
from ctclip_model.json_config import parse_config
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.heads import LatentClassifier, LiPro
from ctclip_model.models.kinds import ModelKind, kinds_of_type, read_kind
from ctclip_model.models.report_labeller import FIRST_POSITION, ReportLabeller

AnyModel: TypeAlias = CTCLIP | LiPro | ReportLabeller
M = TypeVar("M", CTCLIP, LiPro, ReportLabeller)
MODEL_TYPES: dict[str, type[CTCLIP] | type[LiPro] | type[ReportLabeller]] = {
    model_type.__name__: model_type for model_type in (CTCLIP, LiPro, ReportLabeller)
}
TRUNK, HEAD = "trained_model.", "classifier."  # where a LiPro file keeps CT-CLIP and the head
# A constant that older transformers saved with the weights.
POSITION_IDS = (
    "text_transformer.embeddings.position_ids",
    f"{TRUNK}text_transformer.embeddings.position_ids",
    "model.embeddings.position_ids",
)
RANDOM_WEIGHTS = ("kaiming_uniform_", "uniform_", "normal_")  # by name: transformers puts its own in torch's place


@dataclass(frozen=True)
class ModelFolder(Generic[M]):
    """What a model folder holds; `info` is what its maker wished to keep, such as the parent or the data set."""

    folder: Path
    kind: ModelKind
    model: M
    config: Any
    info: dict[str, Any]
    special_tokens: dict[str, str]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Read when it is asked for: whoever embeds volumes alone, or asks a LiPro, needs none.

        Raises `MissingInputError` where there is none, `CheckpointError` where it cannot be read.
        """
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise MissingInputError(f"{self.folder} has no tokenizer: put the tokenizer.json of its texts there")
        try:
            return PreTrainedTokenizerFast(tokenizer_file=str(path), **self.special_tokens)
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise CheckpointError(f"{self.folder}: its tokenizer.json cannot be read ({error})") from error


def load_ctclip(path: Path | str, config: CTCLIPConfig | None = None) -> CTCLIP:
    """Loads CT-CLIP, in evaluation mode on the CPU, from weights: a published `.pt`, or `.pth` or `.safetensors`.

    Without `config`, the shapes of the weights give the configuration: the published one, or one that differs in
    patch size, depth of the encoders or latents. Names may begin with `module.`. Code in a file is never run.

    Raises `CheckpointError` for a missing or damaged file, and for weights of another model.

    >>> from ctclip_model import load_ctclip, load_volume
    >>> model = load_ctclip("CT-CLIP_v2.pt")
    >>> volumes = load_volume("scan.nii.gz").unsqueeze(0)  # (1, 1, depth, height, width)
    >>> latents = model.encode_image(volumes)
    >>> latents.shape == (1, model.config.latent_dim)
    True
    """
    return _ctclip(read_weights(path), path, config)


def load_weights(path: Path | str, preset: Preset | None = None) -> AnyModel:
    """Whichever model a file holds, told by its keys; takes and refuses what the loader of that model does.

    `preset` describes it where it has not the published widths.
    """
    weights = read_weights(path)
    if any(key.startswith(TRUNK) for key in weights):
        return _lipro(weights, path, preset.model if preset else None)
    if any(key.startswith(("visual_transformer.", "text_transformer.")) for key in weights):
        return _ctclip(weights, path, preset.model if preset else None)
    if any(key.startswith("model.") for key in weights):
        return _labeller(weights, path, preset.labeller if preset else None)
    raise CheckpointError(
        f"{path}: holds neither CT-CLIP (visual_transformer, text_transformer), LiPro ({TRUNK}, {HEAD}) nor a report "
        f"labeller (model., {HEAD}), but {_listed(list(weights)) or 'nothing'}"
    )


def load_lipro(path: Path | str, config: CTCLIPConfig | None = None) -> LiPro:
    """LiPro, in evaluation mode: CT-CLIP under `trained_model.` and the head under `classifier.` of one file.

    Takes and refuses what `load_ctclip` does.
    """
    return _lipro(read_weights(path), path, config)


def _ctclip(weights: dict[str, Tensor], path: Path | str, config: CTCLIPConfig | None = None) -> CTCLIP:
    model: CTCLIP = _filled(CTCLIP, config or _infer_ctclip_config(weights, path), weights, path)
    return model


def _lipro(weights: dict[str, Tensor], path: Path | str, config: CTCLIPConfig | None = None) -> LiPro:
    trunk = {key.removeprefix(TRUNK): value for key, value in weights.items() if key.startswith(TRUNK)}
    model: LiPro = _filled(LiPro, config or _infer_ctclip_config(trunk, path), weights, path)
    return model


def load_labeller_weights(path: Path | str, config: LabellerConfig | None = None) -> ReportLabeller:
    """A report labeller, in evaluation mode, with the weights of `RadBertClassifier.pth` or one like it.

    Without `config` it is read off the shapes, if the text encoder's width is RadBERT's. Raises `CheckpointError`.
    """
    return _labeller(read_weights(path), path, config)


def _labeller(weights: dict[str, Tensor], path: Path | str, config: LabellerConfig | None = None) -> ReportLabeller:
    model: ReportLabeller = _filled(ReportLabeller, config or _infer_labeller_config(weights, path), weights, path)
    return model


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.pt`, `.pth` or `.safetensors` file, by name; never runs code that a file carries.

    They stay in the file until they are read, so that one of gigabytes takes little memory of its own.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise CheckpointError(f"{path}: weights come as .pt, .pth or .safetensors")
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            is_mappable = zipfile.is_zipfile(path)  # as PyTorch has written since 1.6
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except Exception as error:  # whatever trips a parser, the file is not what it says
        raise CheckpointError(f"{path}: cannot be read as weights ({type(error).__name__})") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path}: is not a state dict, a mapping of names to tensors")
    if weights and all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if key not in POSITION_IDS}


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
    """Writes a whole model folder, or none: beside it first, then in its place. `extra` must be fit for JSON.

    `kind` is the first one of the model's class by default. `card` is for a person to read; a model that reads no text
    needs no tokenizer. `weights` are given where the model itself holds but a share of them, `metrics` where it was
    trained here.
    """
    folder = Path(folder)
    description = {
        "kind": kind or kinds_of_type(type(model))[0],
        "config": dataclasses.asdict(model.config),
        "special_tokens": tokenizer.special_tokens_map if tokenizer else {},
        "info": dict(extra or {}),
    }
    with replace_folder(folder) as temporary:
        whole = {key: value.detach().cpu().contiguous() for key, value in (weights or model.state_dict()).items()}
        save_file(whole, temporary / "model.safetensors")
        (temporary / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
        if tokenizer is not None:
            (temporary / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
        if metrics is not None:
            pq.write_table(metrics, temporary / "metrics.parquet")
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")
        (temporary / "config.json").write_text(json.dumps(description, indent=2))


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> str:
    """A tokenizer as the text of `tokenizer.json`, without the limits of its last call."""
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


@overload
def load_model_folder(folder: Path | str, *, device: str = "cpu") -> ModelFolder[Any]: ...
@overload
def load_model_folder(folder: Path | str, model_type: type[M], *, device: str = "cpu") -> ModelFolder[M]: ...
def load_model_folder(
    folder: Path | str, model_type: type[Any] | None = None, *, device: str = "cpu"
) -> ModelFolder[Any]:
    """A saved model, in evaluation mode; needs nothing but the folder.

    Raises `CheckpointError` where the folder is incomplete, damaged, or holds another model than a `model_type`.
    """
    folder = Path(folder)
    description = read_description(folder)
    try:
        kind, fields, tokens = read_kind(description), description["config"], description["special_tokens"]
        found = MODEL_TYPES[kind.facts.model_type]
        config = parse_config(LabellerConfig if found is ReportLabeller else CTCLIPConfig, fields, "config")
        info = {name: value for name, value in description.get("info", {}).items() if name != "kind"}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: is not a model folder ({type(error).__name__}: {error})") from error
    if model_type is not None and found is not model_type:
        raise CheckpointError(f"{folder}: holds a {found.__name__}, not a {model_type.__name__}")
    path = folder / "model.safetensors"
    model = _filled(found, config, read_weights(path), path)
    return ModelFolder(folder, kind, model.to(device), config, info, tokens)


def load_encoders(folder: Path | str, *, device: str = "cpu") -> ModelFolder[CTCLIP]:
    """CT-CLIP of a model folder, or that inside a LiPro."""
    loaded = load_model_folder(folder, device=device)
    if isinstance(loaded.model, LiPro):
        loaded = dataclasses.replace(loaded, model=loaded.model.trained_model)
    if not isinstance(loaded.model, CTCLIP):
        raise CheckpointError(f"{folder}: holds a {type(loaded.model).__name__}, which encodes no volume")
    return loaded


def load_head(folder: Path | str) -> LatentClassifier:
    """The head of a LiPro folder, in evaluation mode, without reading the encoders: what stored latents need."""
    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(f"{HEAD}{name}") for name in ("weight", "bias")}
        head = LatentClassifier(weights["weight"].shape[1])
        head.load_state_dict(weights)
        if not all(_is_finite(values) for values in weights.values()):
            raise ValueError("NaN or infinite weights")
    except Exception as error:  # whatever trips a parser, the file is not what it says
        raise CheckpointError(f"{path}: holds no head of a LiPro ({type(error).__name__}: {error})") from error
    return head.eval()


class _WithoutRandomWeights(TorchFunctionMode):
    """Leaves out the drawing of random numbers for weights that are about to be replaced: seconds at full size."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", None) in RANDOM_WEIGHTS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _filled(model_type: type[Any], config: Any, weights: dict[str, Tensor], path: Path | str) -> Any:
    """A model of the configuration, holding the weights; refuses weights of any other."""
    with _WithoutRandomWeights():
        model = model_type(config)
    expected = model.state_dict()
    empty = {key: value for key, value in expected.items() if value.numel() == 0}
    weights = empty | weights  # a file may leave out what holds nothing
    faults = []
    if missing := sorted(expected.keys() - weights.keys()):
        faults.append(f"missing {_listed(missing)}")
    if unexpected := sorted(weights.keys() - expected.keys()):
        faults.append(f"unexpected {_listed(unexpected)}")
    common = [key for key in expected if key in weights]
    misshapen = [
        f"{key} {tuple(weights[key].shape)} in place of {tuple(expected[key].shape)}"
        for key in common
        if weights[key].shape != expected[key].shape
    ]
    if misshapen:
        faults.append(f"shapes differ: {_listed(misshapen)}")
    if other := [key for key in common if not weights[key].is_floating_point()]:
        faults.append(f"not floating-point: {_listed(other)}")
    elif damaged := [key for key in common if not _is_finite(weights[key])]:
        faults.append(f"NaN or infinite: {_listed(damaged)}")
    if faults:
        raise CheckpointError(f"{path}: not the weights of this {model_type.__name__}; " + "; ".join(faults))
    model.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return model.eval()


def _is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; reads a weights file ten times faster than `isfinite`."""
    return values.numel() == 0 or all(extreme.isfinite() for extreme in values.aminmax())


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _infer_ctclip_config(weights: dict[str, Tensor], path: Path | str) -> CTCLIPConfig:
    """The configuration that the shapes tell.

    Two things leave no trace in them, the depth of a volume and the heads of the text encoder: they are taken as
    published where the size of a slice and the width of the text encoder are.
    """
    vision, text = "visual_transformer.", "text_transformer."
    spatial = f"{vision}enc_spatial_transformer.layers."
    try:
        dim, features = weights[f"{vision}to_patch_emb.2.weight"].shape
        patch_size = math.isqrt(len(weights[f"{vision}to_patch_emb_first_frame.1.weight"]))
        dim_head = len(weights[f"{spatial}0.1.q_scale"])
        latent_dim, image_features = weights["to_visual_latent.weight"].shape
        vocab_size, hidden_size = weights[f"{text}embeddings.word_embeddings.weight"].shape
        config = CTCLIPConfig(
            vision=VisionConfig(
                dim=dim,
                codebook_size=weights[f"{vision}vq._codebook.embed"].shape[1],
                image_size=math.isqrt(image_features // dim) * patch_size,
                patch_size=patch_size,
                temporal_patch_size=features // patch_size**2,
                spatial_layers=_count(weights, spatial),
                temporal_layers=_count(weights, f"{vision}enc_temporal_transformer.layers."),
                dim_head=dim_head,
                heads=len(weights[f"{spatial}0.1.to_q.weight"]) // dim_head,
            ),
            text=TextConfig(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                layers=_count(weights, f"{text}encoder.layer."),
                intermediate_size=len(weights[f"{text}encoder.layer.0.intermediate.dense.weight"]),
                max_length=len(weights[f"{text}embeddings.position_embeddings.weight"]),
            ),
            latent_dim=latent_dim,
        )
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError):
        return CTCLIPConfig()  # whose names and shapes the refusal will then give
    published = CTCLIPConfig()
    if (config.vision.image_size, hidden_size) != (published.vision.image_size, published.text.hidden_size):
        raise CheckpointError(
            f"{path}: slices of {config.vision.image_size} voxels and a text encoder of width {hidden_size} are not "
            "the published ones; load it with its config, or from its model folder"
        )
    return config


def _infer_labeller_config(weights: dict[str, Tensor], path: Path | str) -> LabellerConfig:
    """The configuration that the shapes tell; of the heads there is no trace: as published where the width is."""
    published = LabellerConfig()
    try:
        vocab_size, hidden_size = weights["model.embeddings.word_embeddings.weight"].shape
        config = dataclasses.replace(
            published,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            layers=_count(weights, "model.encoder.layer."),
            intermediate_size=len(weights["model.encoder.layer.0.intermediate.dense.weight"]),
            max_length=len(weights["model.embeddings.position_embeddings.weight"]) - FIRST_POSITION,
        )
    except (KeyError, ValueError, TypeError):
        return published  # whose names and shapes the refusal will then give
    if hidden_size != published.hidden_size:
        raise CheckpointError(f"{path}: a text encoder of width {hidden_size} is not RadBERT's; put config.json beside")
    return config


def _count(weights: dict[str, Tensor], prefix: str) -> int:
    """How many layers stand under a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})
