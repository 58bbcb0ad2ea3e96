"""Floating-point operations of a training step, counted by PyTorch on tensors that have only shapes.

Attention runs as plain products, because PyTorch does not count a CPU's kernel for it. The depthwise convolutions, less
than 1 %, are left out: PyTorch counts their backward pass as if they were dense.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctclip_model.config import Preset
from ctclip_model.models.clip import CTCLIP, contrastive_loss


def step_flops(preset: Preset, *, with_text: bool = True) -> int:
    """Operations that a training step needs for one volume with the longest report: forward and backward, once each."""
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model = CTCLIP(preset.model).train()
        model.visual_transformer.vq.eval()  # its counts in training would depend on values
        images = model.encode_image(torch.empty(1, 1, *preset.recipe.shape))
        ids = torch.zeros(1, preset.model.text.max_length, dtype=torch.int64)
        texts = model.encode_text(ids, torch.ones_like(ids)) if with_text else images.detach()
        contrastive_loss(images, texts, model.temperature).backward()
    return _products(counter)


def forward_flops(preset: Preset) -> int:
    """Operations of the image encoder's forward pass on one volume."""
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = CTCLIP(preset.model).eval()
        model.encode_image(torch.empty(1, 1, *preset.recipe.shape))
    return _products(counter)


def _products(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if "convolution" not in str(operator))
