"""Latents of volumes, reports and prompts, encoded in batches on the model's device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import CTCLIPConfig
from ctclip_model.data.label_sets import LabelSet
from ctclip_model.device import autocast_to
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.text_batches import OnCut, map_texts
from ctclip_model.models.weights import VolumeEncoder

# Image tokens of a batch: those of one published volume, or of many small ones. A GPU takes eight times as many.
TOKENS_PER_BATCH = {"cpu": 2**14, "cuda": 8 * 24**3}
TEXTS_PER_BATCH = 32  # texts that an encoder of another package is given at once

Floats = NDArray[np.float32]
T = TypeVar("T")


def batch_size(config: CTCLIPConfig, device: torch.device) -> int:
    """The number of volumes to encode at once: one published volume, or eight on a GPU, and 64 at most."""
    return max(1, min(64, TOKENS_PER_BATCH[device.type] // math.prod(config.vision.grid)))


def count_at_once(model: VolumeEncoder, device: torch.device) -> int:
    """The number of volumes to encode at once, by an encoder of another package as many as it takes."""
    return model.batch_size if isinstance(model, ExternalModel) else batch_size(model.config, device)


def embed_volumes(
    model: VolumeEncoder, batches: Iterable[tuple[Sequence[str], Tensor]], *, dtype: torch.dtype | None = None
) -> Iterator[tuple[Sequence[str], Floats]]:
    """Yields the names and unit latents (B, latent) of each batch of (names, volumes).

    Volumes are (B, 1, depth, height, width), int16 HU as in shards, or floats in [-1, 1]. A `dtype` such as bfloat16
    runs the model in autocast. Latents are always float32.
    """
    for names, latents in _encode(model, model.encode_image, batches, dtype):
        yield names, _unit(latents)


def encode_tokens(
    model: CTCLIP, batches: Iterable[tuple[Sequence[str], Tensor]], *, dtype: torch.dtype | None = None
) -> Iterator[tuple[Sequence[str], Tensor]]:
    """Yields the names and the image encoder's tokens before pooling, (B, depth, height, width, dim) of the patch grid.

    Arguments as in `embed_volumes`. The tokens are on the CPU, in `dtype` or float32.
    """
    for names, tokens in _encode(model, model.image_tokens, batches, dtype):
        yield names, tokens.to("cpu", dtype or torch.float32)


def embed_with_tokens(
    model: CTCLIP, volumes: Tensor, *, dtype: torch.dtype | None = None
) -> tuple[Floats, Tensor, Tensor]:
    """Unit latents (B, latent), their norms before normalisation (B,), and the tokens, of one forward pass.

    Arguments and latents are those of `embed_volumes`. The tokens (B, depth, height, width, dim) and norms stay on the
    model's device.
    """

    def encode(volumes: Tensor) -> tuple[Tensor, Tensor]:
        tokens = model.image_tokens(volumes)
        return model.project_image(model.pooling(tokens)), tokens

    ((_, (latents, tokens)),) = _encode(model, encode, [([], volumes)], dtype)
    return _unit(F.normalize(latents, dim=-1)), latents.norm(dim=-1), tokens


def embed_texts(
    model: VolumeEncoder,
    tokenizer: PreTrainedTokenizerFast | None,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    tokens_per_batch: int | None = None,
    dtype: torch.dtype | None = None,
    on_cut: OnCut | None = None,
) -> Floats:
    """Unit latents (texts, latent) in the order of the texts. `max_length` is in tokens, by default the model's own.

    An encoder of another package reads the texts themselves: it takes no tokenizer and does not say what it cuts.
    """
    model.eval()
    if isinstance(model, ExternalModel):
        return _embed_external(model, texts, dtype)
    assert tokenizer is not None, "CT-CLIP reads tokens"
    latents = map_texts(
        model.encode_text,
        tokenizer,
        texts,
        max_length=max_length or model.config.text.max_length,
        tokens_per_batch=tokens_per_batch,
        device=model.device,
        dtype=dtype,
        width=model.config.latent_dim,
        on_cut=on_cut,
    )
    return _unit(torch.from_numpy(latents))


def _embed_external(model: ExternalModel, texts: Sequence[str], dtype: torch.dtype | None) -> Floats:
    chunks = [texts[start : start + TEXTS_PER_BATCH] for start in range(0, len(texts), TEXTS_PER_BATCH)]
    with autocast_to(model.device, dtype):
        latents = [_unit(model.encode_text(chunk)) for chunk in chunks]
    return np.concatenate([np.empty((0, model.config.latent_dim), np.float32), *latents])


def embed_prompts(
    model: VolumeEncoder,
    tokenizer: PreTrainedTokenizerFast | None,
    label_set: LabelSet,
    *,
    dtype: torch.dtype | None = None,
) -> Floats:
    """Unit latents (L, 2, latent) of the prompts [present, absent] of each finding of a set."""
    return embed_texts(model, tokenizer, label_set.prompts, dtype=dtype).reshape(len(label_set), 2, -1)


def _encode(
    model: VolumeEncoder,
    function: Callable[[Tensor], T],
    batches: Iterable[tuple[Sequence[str], Tensor]],
    dtype: torch.dtype | None,
) -> Iterator[tuple[Sequence[str], T]]:
    """Applies a function to each batch of volumes on the model's device."""
    model.eval()
    device = model.device
    for names, volumes in batches:
        with torch.inference_mode(), autocast_to(device, dtype):
            yield names, function(volumes.to(device, non_blocking=True))


def _unit(latents: Tensor) -> Floats:
    """Float32 rows of length 1. Latents in half precision have that length only to three digits."""
    unit: Floats = F.normalize(latents.float(), dim=-1).cpu().numpy()
    return unit
