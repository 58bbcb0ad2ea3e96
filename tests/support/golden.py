"""Golden numbers: what the published code computes from given weights and inputs (tests/golden)."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch import Tensor

from support.paths import GOLDEN


def load_golden(name: str) -> dict[str, Tensor]:
    """Tensors of a golden file by name."""
    return load_file(GOLDEN / f"{name}.safetensors")


def load_tiny_weights() -> dict[str, Tensor]:
    """The published state dict of the tiny model, its parameters without elements included."""
    weights = load_golden("ctclip_tiny.weights")
    for key, shape in json.loads((GOLDEN / "ctclip_tiny.json").read_text())["empty_buffers_or_params"]:
        weights[key] = torch.empty(shape)
    return weights
