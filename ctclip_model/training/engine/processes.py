"""Several processes that train one model: each encodes its share of a batch, and their gradients are averaged.

Without a process group there is one process, and every function here returns its argument unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ctclip_model.errors import ConfigurationError


def world_size() -> int:
    """The number of processes that train."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait_for_all() -> None:
    """Returns when every process has called it."""
    if dist.is_initialized():
        dist.barrier()


def share(batch_size: int) -> slice:
    """The rows of a global batch that this process encodes. Raises `ConfigurationError` for unequal shares."""
    if batch_size % world_size():
        raise ConfigurationError(f"a batch of {batch_size} does not divide among {world_size()} processes")
    rows = batch_size // world_size()
    return slice(rank() * rows, (rank() + 1) * rows)


def gather(latents: Tensor) -> Tensor:
    """Latents (B, latent) of every process as (processes B, latent). Gradients flow back to all processes."""
    return _Gather.apply(latents) if world_size() > 1 else latents


@torch.no_grad()
def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over the processes, in one message. The tensors share one type."""
    flat = list(tensors)
    if world_size() == 1 or not flat:
        return
    message = torch.cat([tensor.flatten() for tensor in flat])
    dist.all_reduce(message)
    for tensor, total in zip(flat, message.split([tensor.numel() for tensor in flat]), strict=True):
        tensor.copy_(total.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sum_over_processes(gradients)
    for gradient in gradients if world_size() > 1 else ():
        gradient.div_(world_size())


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients together down to a norm of `max_norm`. Returns the norm before.

    With FSDP2 each process holds and scales its part of a gradient.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    complete = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norm = nn.utils.get_total_norm(complete)
    if parts:
        norm_of_parts = nn.utils.get_total_norm(parts)
        assert isinstance(norm_of_parts, DTensor)
        norm = torch.hypot(norm.to(norm_of_parts.device), norm_of_parts.full_tensor())
        torch._foreach_mul_(list[Tensor](parts), (max_norm / (norm + 1e-6)).clamp(max=1.0).item())
    torch._foreach_mul_(complete, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers of a seed inside the context. None: the generator in use continues."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Gather(torch.autograd.Function):
    """All-gather of rows. The gradient of a row is the sum of its gradients on all processes."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor) -> Tensor:
        parts = [torch.empty_like(latents) for _ in range(world_size())]
        dist.all_gather(parts, latents.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]
