"""Device and precision of a model.

Imports torch in the functions that use it, so that the command line offers these choices without waiting for it.
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
    """The device of a name: cpu, cuda, or auto for a GPU if there is one. Raises `ConfigurationError`."""
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"there is no device {name!r}: choose auto, cpu, or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {name!r} is not supported: choose auto, cpu, or cuda")
    if device.type == "cuda" and not has_gpu:
        raise ConfigurationError(f"device {name!r}: PyTorch sees no GPU; choose auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device {name!r}: PyTorch sees only {torch.cuda.device_count()} GPUs")
    return device


class Precision(StrEnum):
    """Precision of a model's computation (autocast). Weights, losses and latents are always float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"

    @property
    def autocast(self) -> torch.dtype | None:
        """The type for `torch.autocast`, or None for float32."""
        import torch

        return None if self is Precision.float32 else getattr(torch, self.value)

    @property
    def fingerprint_parts(self) -> tuple[str, ...]:
        """Parts of a result's fingerprint. Float32 adds none, so that older records stay valid."""
        return () if self is Precision.float32 else (self.value,)


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """A context in which PyTorch computes in a type wherever that is safe. None changes nothing."""
    import torch

    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@dataclass(frozen=True)
class Compute:
    """Computation of a training. Kept with the model and part of no fingerprint: it does not change what is learned."""

    device: str = "auto"
    precision: Precision = Precision.float32
    recompute: bool = (
        False  # recomputes the image encoder's activations: less memory for more time; see docs/training.md
    )
    compile: bool = False  # compiles the encoders' layers: a minute at the start, then 1.7 times as fast on an H100
    encoded_at_once: int | None = None  # volumes encoded at a time per process; the loss sees all (GradCache)
    sharded: bool = False  # splits weights, gradients and optimizer over the processes (FSDP2); otherwise DDP
    checkpoints_kept: int = 3  # last checkpoints kept, beside the best
    tensorboard: bool = False  # event files beside the checkpoints


@contextmanager
def limit_cpu_threads(count: int | None) -> Iterator[None]:
    """Limits PyTorch's CPU threads. Two threads slow small operations down if other processes are at work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
