"""The golden numbers of the published model (tests/golden) and our tiny models that must reproduce them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch import Tensor

from ctclip_model.config import CTCLIPConfig, TextConfig, VisionConfig
from ctclip_model.models.clip import CTCLIP
from support.paths import GOLDEN

TINY = CTCLIPConfig(
    vision=VisionConfig(
        dim=32,
        codebook_size=64,
        image_size=40,
        patch_size=10,
        depth=30,
        temporal_patch_size=5,
        spatial_layers=2,
        temporal_layers=2,
        dim_head=8,
        heads=4,
    ),
    text=TextConfig(vocab_size=200, hidden_size=32, layers=2, heads=4, intermediate_size=64, max_length=512),
    latent_dim=16,
)

SLIM = CTCLIPConfig(  # of the published size, as weights without a config must be, and small otherwise
    vision=VisionConfig(
        dim=24, codebook_size=16, patch_size=60, temporal_patch_size=60, spatial_layers=1, temporal_layers=1,
        dim_head=4, heads=3,
    ),
    text=TextConfig(vocab_size=120, layers=1, intermediate_size=32),
    latent_dim=8,
)  # fmt: skip


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def tiny_weights() -> dict[str, Tensor]:
    """The published state dict, its parameters without elements included."""
    weights = golden("ctclip_tiny.weights")
    for key, shape in json.loads((GOLDEN / "ctclip_tiny.json").read_text())["empty_buffers_or_params"]:
        weights[key] = torch.empty(shape)
    return weights


def tiny_model() -> CTCLIP:
    """The tiny published model, in evaluation mode."""
    model = CTCLIP(TINY)
    model.load_state_dict(tiny_weights())
    return model.eval()
