"""What contrastive training minimises, over the batch of all processes, and its gradient a few samples at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctclip_model.config import Negatives
from ctclip_model.models.clip import contrastive_loss, similarity
from ctclip_model.training.engine.processes import gather, rank, world_size

Latents = tuple[Tensor, Tensor]  # of images (B, latent) and of each one's texts (B, texts, latent)
Encode = Callable[[], Latents]


def batch_loss(images: Tensor, texts: Tensor, logit_scale: Tensor, negatives: Negatives) -> Tensor:
    """The loss of this process's latents, whose mean over the processes is that of the whole batch.

    `images` (B, latent) and `texts` (B, texts, latent), row i of one belonging to row i of the other, are compared with
    the columns of all processes, or with this one's alone (`local`, as published). Of several texts the loss is the
    mean over the first of each, the second of each and so on. `logit_scale` is the temperature.
    """
    losses = [_loss_of_pairs(images, column.contiguous(), logit_scale, negatives) for column in texts.unbind(1)]
    return torch.stack(losses).mean()


def _loss_of_pairs(images: Tensor, texts: Tensor, logit_scale: Tensor, negatives: Negatives) -> Tensor:
    if negatives is Negatives.local or (negatives is Negatives.global_batch and world_size() == 1):
        return contrastive_loss(images, texts, logit_scale)
    all_images, all_texts = gather(images), gather(texts)
    if negatives is Negatives.sigmoid:
        return sigmoid_loss(images, all_texts, logit_scale)
    targets = torch.arange(len(images), device=images.device) + rank() * len(images)
    of_texts = F.cross_entropy(similarity(texts, all_images, logit_scale), targets)
    of_images = F.cross_entropy(similarity(images, all_texts, logit_scale), targets)
    return (of_texts + of_images) / 2


def sigmoid_loss(images: Tensor, all_texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Each pair of the image latents (B, latent) and all texts (N, latent) on its own, as in SigLIP (arXiv 2303.15343).

    The paper learns a bias from -10. Published weights have no place for one: it stays at the log odds of a right pair.
    """
    count = len(all_texts)
    logits = similarity(images, all_texts, logit_scale) - math.log(max(1, count - 1))
    rows = torch.arange(len(images), device=images.device)
    signs = logits.new_full(logits.shape, -1.0)
    signs[rows, rows + rank() * len(images)] = 1.0
    return -F.logsigmoid(signs * logits).sum() / len(images)


def backward_in_parts(
    parts: Sequence[Encode],
    logit_scale: Tensor,
    negatives: Negatives,
    accumulating: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Adds the gradients of the loss over all parts, of which one is in memory at a time (GradCache, arXiv 2101.06983).

    Each part is encoded twice, and must give the same latents both times: once without gradients, for the loss and
    its gradient by the latents, and once with, to carry that gradient on; `accumulating` is around all but the last
    of these. Returns the loss.
    """
    with torch.no_grad():
        encoded = [encode() for encode in parts]
    images, texts = (torch.cat(latents).requires_grad_() for latents in zip(*encoded, strict=True))
    loss = batch_loss(images, texts, logit_scale, negatives)
    loss.backward()
    assert images.grad is not None
    assert texts.grad is not None
    sizes = [len(latents) for latents, _ in encoded]
    for part, gradients in enumerate(zip(images.grad.split(sizes), texts.grad.split(sizes), strict=True)):
        with accumulating() if part + 1 < len(parts) else nullcontext():
            latents = parts[part]()
            outputs = [pair for pair in zip(latents, gradients, strict=True) if pair[0].requires_grad]
            torch.autograd.backward([output for output, _ in outputs], [gradient for _, gradient in outputs])
    return loss.detach()
