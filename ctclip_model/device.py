"""Where a model runs."""

from __future__ import annotations

import torch

from ctclip_model.errors import ConfigurationError


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises `ConfigurationError` if there is no such."""
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"there is no device {name!r}: choose auto, cpu, or cuda") from error
    if device.type == "cuda" and not has_gpu:
        raise ConfigurationError(f"device {name!r} was asked for, and PyTorch sees no GPU; choose auto or cpu")
    return device
