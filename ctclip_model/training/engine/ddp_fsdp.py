"""One model on several processes: copies that exchange gradients (DDP), or shares of one (FSDP2).

The temperature is left out of both. It belongs to no encoder, and where latents are encoded in parts its gradient
comes from the first pass alone: the loop averages it over the processes, once a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from ctclip_model.models.clip import CTCLIP
from ctclip_model.training.engine.processes import world_size
from ctclip_model.training.losses import Latents


@dataclass(frozen=True)
class Spread:
    """A model as the processes hold it."""

    encode: Callable[[Tensor, Tensor, Tensor], Latents]  # of volumes, token ids and their mask
    accumulating: Callable[[], AbstractContextManager[Any]]  # within, gradients stay with the process that made them
    averaged: Sequence[nn.Parameter] | None  # whose gradients are left for the loop to average; None: all


class Encoders(nn.Module):
    """Both encoders behind one `forward`, which is what DDP watches."""

    def __init__(self, model: CTCLIP) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [model.visual_transformer, model.to_visual_latent, model.text_transformer, model.to_text_latent]
        )
        # Looked up at each call, for FSDP2 replaces the methods; and in a function, lest the model become a part.
        self.encode = lambda volumes, ids, mask: (model.encode_image(volumes), model.encode_text(ids, mask))

    def forward(self, volumes: Tensor, ids: Tensor, mask: Tensor) -> Latents:
        return self.encode(volumes, ids, mask)


def spread(model: CTCLIP, *, sharded: bool) -> Spread:
    """The model on all processes; what takes a gradient must be settled before, the optimizer made afterwards."""
    encoders = Encoders(model)
    if world_size() == 1:
        return Spread(encoders, nullcontext, None)
    if not sharded:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a new name for the option, which older versions lack
            copies = DistributedDataParallel(encoders, broadcast_buffers=False)
        return Spread(copies, copies.no_sync, [model.temperature])
    shard(model)
    return Spread(encoders, nullcontext, [model.temperature])


def shard(model: CTCLIP) -> None:
    """Shares weights out over the processes; each group of them is put together where its module is called.

    BERT's layers are not called as modules: they are of the model's own group, with all else that is small.
    """
    small = {parameter for parameter in model.parameters() if parameter.ndim == 0 or parameter.numel() == 0}
    encoder = model.visual_transformer
    for transformer in (encoder.enc_spatial_transformer, encoder.enc_temporal_transformer):
        for layer in transformer.layers:
            fully_shard(layer, ignored_params=small)
    fully_shard(model.to_visual_latent)
    # Put back after each call: what a pass without gradients leaves whole would be stale after the optimizer's step.
    fully_shard(model, reshard_after_forward=True, ignored_params=small)
    for name in ("encode_image", "encode_text", "unquantized_tokens"):
        register_fsdp_forward_method(model, name)
