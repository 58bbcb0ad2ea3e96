"""Latents of volumes, reports and prompts: each encoded once, in batches, wherever the model's weights are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import CTCLIPConfig
from ctclip_model.data.abnormalities import prompt_pair
from ctclip_model.data.loader import HU_PER_UNIT
from ctclip_model.device import autocast_to
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text_batches import map_texts

TOKENS_PER_BATCH = 16_384  # of the image encoder: one published volume, or many small ones

Floats = NDArray[np.float32]


def batch_size(config: CTCLIPConfig) -> int:
    """How many volumes to encode at once: about the memory of one published volume, whatever their size."""
    return max(1, min(64, TOKENS_PER_BATCH // math.prod(config.vision.grid)))


def embed_volumes(
    model: CTCLIP, batches: Iterable[tuple[Sequence[str], Tensor]], *, dtype: torch.dtype | None = None
) -> Iterator[tuple[Sequence[str], Floats]]:
    """The names and unit latents (B, latent) of each batch of (names, volumes).

    Volumes are (B, 1, depth, height, width), int16 HU as shards keep them, or floats in [-1, 1]. With a `dtype` such
    as bfloat16 the model runs in autocast; the latents are float32 all the same.
    """
    for names, latents in _encode(model, model.encode_image, batches, dtype):
        yield names, _unit(latents)


def encode_tokens(
    model: CTCLIP, batches: Iterable[tuple[Sequence[str], Tensor]], *, dtype: torch.dtype | None = None
) -> Iterator[tuple[Sequence[str], Tensor]]:
    """The names and the image encoder's tokens before pooling, (B, depth, height, width, dim) of the patch grid.

    Takes what `embed_volumes` takes. The tokens are on the CPU, in `dtype` where there is one, else float32.
    """
    for names, tokens in _encode(model, model.image_tokens, batches, dtype):
        yield names, tokens.to("cpu", dtype or torch.float32)


def embed_texts(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    tokens_per_batch: int | None = None,
    dtype: torch.dtype | None = None,
) -> Floats:
    """Unit latents (texts, latent), in the order of the texts; `max_length` in tokens, the model's own when None."""
    model.eval()
    latents = map_texts(
        model.encode_text,
        tokenizer,
        texts,
        max_length=max_length or model.config.text.max_length,
        tokens_per_batch=tokens_per_batch,
        device=model.temperature.device,
        dtype=dtype,
        width=model.config.latent_dim,
    )
    return _unit(torch.from_numpy(latents))


def embed_prompts(
    model: CTCLIP, tokenizer: PreTrainedTokenizerFast, names: Sequence[str], *, dtype: torch.dtype | None = None
) -> Floats:
    """Unit latents (L, 2, latent) of "X is present." and "X is not present." for each abnormality X."""
    prompts = [prompt for name in names for prompt in prompt_pair(name)]
    return embed_texts(model, tokenizer, prompts, dtype=dtype).reshape(len(names), 2, -1)


def _encode(
    model: CTCLIP,
    function: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Sequence[str], Tensor]],
    dtype: torch.dtype | None,
) -> Iterator[tuple[Sequence[str], Tensor]]:
    """`function` of each batch of volumes, scaled, where the model is."""
    model.eval()
    device = model.temperature.device
    for names, volumes in batches:
        with torch.inference_mode(), autocast_to(device, dtype):
            yield names, function(_scaled(volumes.to(device, non_blocking=True)))


def _scaled(volumes: Tensor) -> Tensor:
    return volumes if volumes.is_floating_point() else volumes.float() / HU_PER_UNIT


def _unit(latents: Tensor) -> Floats:
    """Float32 rows of length 1: in half precision they are so to three digits only."""
    unit: Floats = F.normalize(latents.float(), dim=-1).cpu().numpy()
    return unit
