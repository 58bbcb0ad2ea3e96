"""The image encoder's code book in training: its first codes, and how they move after a step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ctclip_model.models.clip import CTCLIP
from ctclip_model.training.engine.processes import gather, sum_over_processes
from ctclip_model.training.samples import make_images


def start_codebook_once(model: CTCLIP, volumes: Tensor, changes: Tensor | None) -> None:
    """Starts a code book that has never moved, if there is one, from int16 volumes as `make_images` takes them."""
    quantizer = model.visual_transformer.vq
    if not quantizer.is_empty and not quantizer._codebook.cluster_size.any():
        start_codebook(model, make_images(volumes, changes, model.temperature.device))


def move_codebook(model: CTCLIP) -> None:
    """Moves the codes towards the tokens that all processes have seen since the last move."""
    sum_over_processes(model.visual_transformer.vq.statistics or ())
    model.update_codebook()


@torch.no_grad()
def start_codebook(model: CTCLIP, images: Tensor) -> None:
    """Sets the codes to randomly drawn tokens of the images (B, 1, depth, height, width), before the first step.

    No token is drawn twice while others are left: between equal codes rounding would decide, differently on each
    machine.
    """
    tokens = gather(model.unquantized_tokens(images).flatten(0, -2))
    codes = model.visual_transformer.vq._codebook.embed[0]
    chosen = torch.randperm(len(tokens), device=tokens.device)[torch.arange(len(codes)) % len(tokens)]
    codes.copy_(F.normalize(tokens[chosen], dim=-1))
