"""One model on several processes: copies that exchange gradients (DDP), or shares of one model (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from ctclip_model.training.engine.processes import world_size


@dataclass(frozen=True)
class Layout:
    """The parts of a model that copies and shares must know."""

    forward: nn.Module  # its forward pass is the training's; holds the parts whose gradients are exchanged
    apart: Sequence[nn.Parameter] = ()  # left out of DDP and FSDP2; the loop averages their gradients
    units: Sequence[nn.Module] = ()  # modules that FSDP2 gathers one at a time; the rest of the model is one unit
    methods: Sequence[str] = ()  # methods of the model that are called in place of `forward`


@dataclass(frozen=True)
class DistributedModel:
    """A model as one of the processes holds it."""

    forward: Callable[..., Any]
    accumulating: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)  # gradients stay local inside
    to_average: Sequence[nn.Parameter] | None = None  # gradients that the loop averages; None: all


def distribute(model: nn.Module, layout: Layout, *, sharded: bool) -> DistributedModel:
    """Puts a model on all processes. Freeze parameters before, and make the optimizer afterwards."""
    if world_size() == 1:
        return DistributedModel(layout.forward)
    if sharded:
        _shard(model, layout)
        return DistributedModel(layout.forward, to_average=layout.apart)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions rename the option, older ones lack the new name
        copies = DistributedDataParallel(layout.forward, broadcast_buffers=False)
    return DistributedModel(copies, copies.no_sync, layout.apart)


def _shard(model: nn.Module, layout: Layout) -> None:
    """Shares weights out over the processes. Each unit's weights are gathered where its module is called."""
    small = {parameter for parameter in model.parameters() if parameter.ndim == 0 or parameter.numel() == 0}
    for unit in layout.units:
        fully_shard(unit, ignored_params=small)
    # Shared out again after each call: weights that a pass without gradients keeps would be stale after the next step.
    fully_shard(model, reshard_after_forward=True, ignored_params=small)
    for name in layout.methods:
        register_fsdp_forward_method(model, name)
