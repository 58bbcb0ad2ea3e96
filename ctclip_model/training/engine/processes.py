"""Several processes that train one model: each encodes its share of a batch, and what they learn is put together.

Without a process group there is one process, and everything here gives back what it was given.
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
    """How many processes train."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait_for_all() -> None:
    """Until every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def share(batch_size: int) -> slice:
    """The rows of a global batch that this process encodes; raises `ConfigurationError` where shares would differ."""
    if batch_size % world_size():
        raise ConfigurationError(f"a batch of {batch_size} does not divide among {world_size()} processes")
    rows = batch_size // world_size()
    return slice(rank() * rows, (rank() + 1) * rows)


def gather(latents: Tensor) -> Tensor:
    """Every process's latents (B, latent) as (processes B, latent), through which gradients reach all of them."""
    return _Gather.apply(latents) if world_size() > 1 else latents


@torch.no_grad()
def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Puts in each tensor's place its sum over the processes, all of one type in one message."""
    flat = list(tensors)
    if world_size() == 1 or not flat:
        return
    message = torch.cat([tensor.flatten() for tensor in flat])
    dist.all_reduce(message)
    for tensor, total in zip(flat, message.split([tensor.numel() for tensor in flat]), strict=True):
        tensor.copy_(total.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean gradient of the processes, on each of them."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sum_over_processes(gradients)
    for gradient in gradients if world_size() > 1 else ():
        gradient.div_(world_size())


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> float:
    """Scales gradients down to a norm of `most`, of all of them together, and returns the norm that they had.

    Of a gradient that is shared out over the processes (FSDP2), each holds and scales a part.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    own = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norm = nn.utils.get_total_norm(own)
    if parts:
        of_parts = nn.utils.get_total_norm(parts)
        assert isinstance(of_parts, DTensor)
        norm = torch.hypot(norm.to(of_parts.device), of_parts.full_tensor())
        torch._foreach_mul_(list[Tensor](parts), (most / (norm + 1e-6)).clamp(max=1.0).item())
    torch._foreach_mul_(own, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm.item()


@contextmanager
def dropout_of(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers of that seed, the same each time; None goes on with those that are in use."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Gather(torch.autograd.Function):
    """All rows go to every process; a row's gradient is the sum of what every process has for it."""

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
