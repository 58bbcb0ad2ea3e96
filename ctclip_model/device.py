"""Where a model runs, and in what precision.

Imports torch where it is used: the command line offers these choices without waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ctclip_model.errors import ConfigurationError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises `ConfigurationError` if there is no such."""
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"there is no device {name!r}: choose auto, cpu, or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {name!r} is not one that this runs on: choose auto, cpu, or cuda")
    if device.type == "cuda" and not has_gpu:
        raise ConfigurationError(f"device {name!r} was asked for, and PyTorch sees no GPU; choose auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device {name!r} was asked for, and there are {torch.cuda.device_count()} GPUs")
    return device


class Precision(StrEnum):
    """What a model computes in; weights, losses and latents are float32 all the same (autocast)."""

    float32 = "float32"
    bfloat16 = "bfloat16"

    @property
    def autocast(self) -> torch.dtype | None:
        """The type for `torch.autocast`; None where there is nothing to cast."""
        import torch

        return None if self is Precision.float32 else getattr(torch, self.value)

    @property
    def fingerprint_parts(self) -> tuple[str, ...]:
        """What a result's fingerprint says of its precision: nothing of float32, so that older records stay valid."""
        return () if self is Precision.float32 else (self.value,)


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """A context in which PyTorch computes in that type wherever that is safe; None leaves all as it is."""
    import torch

    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@dataclass(frozen=True)
class Compute:
    """How a training is computed: kept with the model, and in no fingerprint, for it is not what is to be learned."""

    device: str = "auto"
    precision: Precision = Precision.float32
    recompute: bool = False  # the image encoder in a quarter of the memory, for the time of a forward more
    compile: bool = False  # the image encoder's layers, by PyTorch's compiler: worth its minute in a long run
    encoded_at_once: int | None = None  # samples a process; the loss is of the whole batch all the same (GradCache)
    sharded: bool = False  # weights, gradients and optimizer shared out over the processes (FSDP2), not on each (DDP)
    checkpoints_kept: int = 3  # the last ones, beside the best
    tensorboard: bool = False  # event files beside the checkpoints


@contextmanager
def limit_cpu_threads(count: int | None) -> Iterator[None]:
    """PyTorch on so many CPU threads: small operations on two are slower than on one as soon as anything else runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
