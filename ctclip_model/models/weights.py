"""Weights recognised by their keys and loaded into a model."""

from __future__ import annotations

import dataclasses
import math
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ctclip_model.config import CTCLIPConfig, LabellerConfig, Preset, TextConfig, VisionConfig
from ctclip_model.errors import CheckpointError
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.heads import LiPro
from ctclip_model.models.report_labeller import FIRST_POSITION, ReportLabeller, read_labeller_config
from ctclip_model.models.unwrapping import unwrap_weights
from ctclip_model.models.weights_files import list_names, read_content

AnyModel: TypeAlias = CTCLIP | LiPro | ExternalModel | ReportLabeller
VolumeEncoder: TypeAlias = CTCLIP | ExternalModel
AnyPath: TypeAlias = str | PathLike[str]
TRUNK, HEAD = "trained_model.", "classifier."  # prefixes of CT-CLIP and of the head in LiPro's weights
# A constant that older versions of transformers saved with the weights.
POSITION_IDS = (
    "text_transformer.embeddings.position_ids",
    f"{TRUNK}text_transformer.embeddings.position_ids",
    "model.embeddings.position_ids",
)
# Other models that people try, by a part of their names.
FOREIGN = (
    (".lora_A.", "an adapter (LoRA), which is no model alone: "),
    (".embeddings.word_embeddings.", "a BERT or RoBERTa alone: "),
    (".to_patch_emb.", "a CT-ViT alone: "),
    (".enc_spatial_transformer.", "a CT-ViT alone: "),
    (".visual.transformer.", "a CLIP of pictures: "),
    (".vision_model.", "a CLIP of pictures: "),
)
# Names, because transformers replaces the functions of torch by its own.
RANDOM_WEIGHTS = ("kaiming_uniform_", "uniform_", "normal_")


def load_ctclip(path: AnyPath, config: CTCLIPConfig | None = None) -> CTCLIP:
    """Loads CT-CLIP, in evaluation mode on the CPU, from weights: the published file, or whatever PyTorch writes.

    Without `config`, the shapes of the weights give the configuration: the published one, or one that differs in
    patch size, depth of the encoders or latents. The weights may be in shards, a folder or a training's checkpoint,
    under any prefix. Code in a file is never run.

    Raises `CheckpointError` for a missing or damaged file, and for weights of another model.

    >>> from ctclip_model import load_ctclip, load_volume
    >>> model = load_ctclip("CT-CLIP_v2.pt")
    >>> volumes = load_volume("scan.nii.gz").unsqueeze(0)  # (1, 1, depth, height, width)
    >>> latents = model.encode_image(volumes)
    >>> latents.shape == (1, model.config.latent_dim)
    True
    """
    return _load_ctclip(*_read(path), config)


def load_labeller_weights(path: AnyPath, config: LabellerConfig | None = None) -> ReportLabeller:
    """Loads a report labeller, in evaluation mode, from `RadBertClassifier.pth` or weights with the same keys.

    Without `config`, the shapes of the weights give the configuration if the width is RadBERT's. Raises
    `CheckpointError`.
    """
    return _load_labeller(*_read(path), config)


def load_weights(path: AnyPath, preset: Preset | None = None) -> AnyModel:
    """Loads the model that a weights file holds, CT-CLIP, LiPro or a report labeller, recognised by its keys.

    `preset` gives the configuration of weights without the published widths. Raises `CheckpointError`.
    """
    weights, origin = _read(path)
    model_config, labeller_config = (preset.model, preset.labeller) if preset else (None, None)
    if any(key.startswith(TRUNK) for key in weights):
        trunk = {key.removeprefix(TRUNK): value for key, value in weights.items() if key.startswith(TRUNK)}
        lipro: LiPro = fill_model(LiPro, model_config or _infer_ctclip_config(trunk, origin), weights, origin)
        return lipro
    if any(key.startswith(("visual_transformer.", "text_transformer.")) for key in weights):
        return _load_ctclip(weights, origin, model_config)
    if any(key.startswith(("model.embeddings.", "model.encoder.")) for key in weights):
        return _load_labeller(weights, origin, labeller_config or read_labeller_config(_folder_of(path)))
    foreign = next((what for part, what in FOREIGN if any(part in f".{key}" for key in weights)), "")
    raise CheckpointError(
        f"{origin}: holds neither CT-CLIP (visual_transformer, text_transformer), LiPro ({TRUNK}, {HEAD}) nor a report "
        f"labeller (model., {HEAD}), but {foreign}{list_names(weights) or 'nothing'}"
    )


def _folder_of(path: AnyPath) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


def read_weights(path: AnyPath) -> dict[str, Tensor]:
    """The tensors of a weights file, an index of shards or a folder with either, by their names in the model.

    Prefixes of trainers and wrappers are taken off: see `unwrap_weights`. Never runs code that a file carries. Tensors
    are mapped: their content stays in the file until it is used. Raises `CheckpointError`.
    """
    return _read(path)[0]


def _read(path: AnyPath) -> tuple[dict[str, Tensor], str]:
    """The tensors, and the words by which errors name their origin."""
    path = Path(path)
    weights, origin = unwrap_weights(read_content(path), path)
    return {key: value for key, value in weights.items() if key not in POSITION_IDS}, origin


def _load_ctclip(weights: dict[str, Tensor], path: AnyPath, config: CTCLIPConfig | None) -> CTCLIP:
    model: CTCLIP = fill_model(CTCLIP, config or _infer_ctclip_config(weights, path), weights, path)
    return model


def _load_labeller(weights: dict[str, Tensor], path: AnyPath, config: LabellerConfig | None) -> ReportLabeller:
    model: ReportLabeller = fill_model(ReportLabeller, config or _infer_labeller_config(weights, path), weights, path)
    return model


class _WithoutRandomWeights(TorchFunctionMode):
    """Skips drawing random weights that are replaced at once, which saves seconds at the published size."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", None) in RANDOM_WEIGHTS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def fill_model(model_type: type[Any], config: Any, weights: dict[str, Tensor], path: AnyPath, **settings: Any) -> Any:
    """Makes a model in evaluation mode with the given weights. `settings` are further arguments of its class.

    Raises `CheckpointError` for missing, unexpected, misshapen, NaN or infinite weights, all of them named. Raises it
    also for a temperature whose exp is 0 or infinite in float32: similarities would be lost.
    """
    with _WithoutRandomWeights():
        model = model_type(config, **settings)
    expected = model.state_dict()
    empty = {key: value for key, value in expected.items() if value.numel() == 0}
    weights = empty | weights  # a file may lack tensors without elements
    faults = []
    if missing := sorted(expected.keys() - weights.keys()):
        faults.append(f"missing {list_names(missing)}")
    if unexpected := sorted(weights.keys() - expected.keys()):
        faults.append(f"unexpected {list_names(unexpected)}")
    common = [key for key in expected if key in weights]
    misshapen = [
        f"{key} {tuple(weights[key].shape)} in place of {tuple(expected[key].shape)}"
        for key in common
        if weights[key].shape != expected[key].shape
    ]
    if misshapen:
        faults.append(f"shapes differ: {list_names(misshapen)}")
    if other := [key for key in common if not _is_dense(weights[key])]:
        faults.append(f"sparse, packed or without content: {list_names(other)}")
    elif other := [key for key in common if not weights[key].is_floating_point()]:
        faults.append(f"not floating-point: {list_names(other)}")
    elif damaged := [key for key in common if not is_finite(weights[key])]:
        faults.append(f"NaN or infinite: {list_names(damaged)}")
    elif lost := [f"{key} {weights[key].item():g}" for key in common if not _keeps_similarities(key, weights[key])]:
        faults.append(f"exp is 0 or infinite in float32 (beyond about -103 to 88): {list_names(lost)}")
    if faults:
        raise CheckpointError(f"{path}: not the weights of this {model_type.__name__}; " + "; ".join(faults))
    model.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return model.eval()


def is_finite(values: Tensor) -> bool:
    """True if no value is NaN or infinite in float32. Reads a weights file ten times faster than `isfinite`."""
    if values.itemsize == 1:  # PyTorch finds no extremes of float8
        values = values.float()
    return values.numel() == 0 or all(extreme.float().isfinite() for extreme in values.aminmax())


def _is_dense(value: Tensor) -> bool:
    """True for a tensor that holds each of its elements, one by one."""
    is_packed = value.is_quantized or value.dtype is getattr(torch, "float4_e2m1fn_x2", None)
    return value.layout is torch.strided and value.device.type == "cpu" and not is_packed


def _keeps_similarities(key: str, value: Tensor) -> bool:
    """True except for a temperature whose exp, the factor on similarities, is 0 or infinite in float32."""
    if key.rpartition(".")[2] != "temperature" or value.numel() != 1:
        return True
    return 0 < value.float().exp().item() < math.inf


def _infer_ctclip_config(weights: dict[str, Tensor], path: AnyPath) -> CTCLIPConfig:
    """The configuration that the shapes of CT-CLIP's weights give.

    The shapes do not depend on the depth of a volume and the heads of the text encoder. Both are as published if the
    size of a slice and the width of the text encoder are. Raises `CheckpointError` otherwise.
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
        return CTCLIPConfig()  # loading then names the keys that differ from the published ones
    published = CTCLIPConfig()
    if (config.vision.image_size, hidden_size) != (published.vision.image_size, published.text.hidden_size):
        raise CheckpointError(
            f"{path}: slices of {config.vision.image_size} voxels and a text encoder of width {hidden_size} are not "
            "the published ones: load it with its config, or from its model folder"
        )
    return config


def _infer_labeller_config(weights: dict[str, Tensor], path: AnyPath) -> LabellerConfig:
    """The configuration that the shapes of a labeller's weights give.

    The shapes do not depend on the heads, which are as published if the width is. Raises `CheckpointError` otherwise.
    """
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
        return published  # loading then names the keys that differ from the published ones
    if hidden_size != published.hidden_size:
        raise CheckpointError(f"{path}: a text encoder of width {hidden_size} is not RadBERT's: add its config.json")
    return config


def _count(weights: dict[str, Tensor], prefix: str) -> int:
    """The number of layers under a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})
