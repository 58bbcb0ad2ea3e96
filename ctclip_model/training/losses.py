"""Losses of latents: contrastive and by prompts, over the batch of all processes, a few samples at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctclip_model.config import Negatives, TrainingConfig
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.models.clip import contrastive_loss, similarity
from ctclip_model.training.engine.processes import gather, rank, share, world_size

Latents = tuple[Tensor, Tensor]  # images (B, latent), and the texts of each image (B, texts, latent)
Encode = Callable[[], Latents]
Loss = Callable[[Tensor, Tensor], Tensor]  # loss of the latents of images and texts
GROUP = 6  # abnormalities that share a loss of VocabFine, at most


def require_contrast(scan_ids: Sequence[str], texts: Sequence[str], config: TrainingConfig) -> None:
    """Raises before a training whose loss would be 0 whatever the model says, or that would take no step.

    `texts` are the reports of the samples. Raises `MissingInputError` for a single scan or a single text, and
    `ConfigurationError` for a batch of one, also of one per process where negatives are local.
    """
    count_scans, count_texts = len(set(scan_ids)), len(set(texts))
    if min(count_scans, count_texts) < 2:
        raise MissingInputError(
            f"{count_scans} scans with {count_texts} different reports: a contrastive training tells reports apart and "
            "needs at least two"
        )
    size = min(config.batch_size, count_scans)
    rows = share(size)
    compared = rows.stop - rows.start if config.negatives is Negatives.local else size
    if compared < 2:
        raise ConfigurationError(
            f"a batch of {size} on {world_size()} processes compares each report with no other: use a larger batch"
        )
    if config.samples < size:
        raise ConfigurationError(
            f"{config.samples} samples are less than one batch of {size}: nothing would be trained"
        )


def average_volumes(latents: Tensor, volumes_per_scan: int) -> Tensor:
    """Unit latents (scans, latent): the normalised mean of each scan's unit latents, which are neighbouring rows.

    Evaluation by scan averages unit latents too. Retrieval normalises their mean as here, and zero-shot classification
    averages the probabilities of each. So every reconstruction has the same weight, and similarities stay cosines.
    """
    if volumes_per_scan == 1:
        return latents  # not normalised again, which would change the last bits
    return F.normalize(latents.unflatten(0, (-1, volumes_per_scan)).mean(dim=1), dim=-1)


def batch_loss(images: Tensor, texts: Tensor, logit_scale: Tensor, negatives: Negatives) -> Tensor:
    """The loss of this process's latents. Its mean over the processes is the loss of the whole batch.

    Row i of `images` (B, latent) belongs to row i of `texts` (B, texts, latent). They are compared with the latents of
    all processes, or of this one alone (`local`, as published). With several texts a row, the loss is the mean over
    the columns of texts. `logit_scale` is the temperature.
    """
    losses = [_pair_loss(images, column.contiguous(), logit_scale, negatives) for column in texts.unbind(1)]
    return torch.stack(losses).mean()


def _pair_loss(images: Tensor, texts: Tensor, logit_scale: Tensor, negatives: Negatives) -> Tensor:
    if negatives is Negatives.local or (negatives is Negatives.global_batch and world_size() == 1):
        return contrastive_loss(images, texts, logit_scale)
    all_images, all_texts = gather(images), gather(texts)
    if negatives is Negatives.sigmoid:
        return sigmoid_loss(images, all_texts, logit_scale)
    targets = torch.arange(len(images), device=images.device) + rank() * len(images)
    text_loss = F.cross_entropy(similarity(texts, all_images, logit_scale), targets)
    image_loss = F.cross_entropy(similarity(images, all_texts, logit_scale), targets)
    return (text_loss + image_loss) / 2


def sigmoid_loss(images: Tensor, all_texts: Tensor, logit_scale: Tensor) -> Tensor:
    """The loss of each pair of image (B, latent) and text (N, latent) on its own, as in SigLIP (arXiv 2303.15343).

    The paper learns a bias from -10. Published weights have no room for one: it stays at the log odds of a right pair.
    """
    count = len(all_texts)
    logits = similarity(images, all_texts, logit_scale) - math.log(max(1, count - 1))
    rows = torch.arange(len(images), device=images.device)
    signs = logits.new_full(logits.shape, -1.0)
    signs[rows, rows + rank() * len(images)] = 1.0
    return -F.logsigmoid(signs * logits).sum() / len(images)


def vocabfine_losses(
    image_latents: Tensor,
    prompt_latents: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    *,
    known_in: Tensor | None = None,
) -> Tensor:
    """The published loss of each group of six abnormalities, (groups,): three for the 18.

    With p the softmax over an abnormality's (right, wrong) prompts, the loss is the mean squared error between p and
    (1, 0). `image_latents` (B, latent). `prompt_latents` (2 findings, latent), "present" and "not present" in turn.
    `labels` (B, findings) decide the right prompt; NaN counts for nothing. The mean is over the known labels of these
    samples, or of the batch `known_in` (N, findings) that contains them. Other numbers of findings have groups of six
    at most, of nearly equal size.
    """
    scores = similarity(image_latents, prompt_latents, logit_scale).unflatten(1, (-1, 2))  # (B, findings, 2)
    known = ~labels.isnan()
    is_present = labels == 1
    wrong = torch.where(is_present[..., None], scores, scores.flip(-1)).softmax(-1)[..., 1]  # (B, findings)
    # (p_right - 1)² = p_wrong², so that the mean of both squares is p_wrong².
    errors = wrong.square().where(known, 0.0)
    counted = known if known_in is None else ~known_in.isnan()
    groups = math.ceil(labels.shape[1] / GROUP)
    parts = zip(errors.tensor_split(groups, 1), counted.tensor_split(groups, 1), strict=True)
    return torch.stack([part.sum() / count.sum().clamp(min=1) for part, count in parts])


def backward_in_parts(
    parts: Sequence[Encode],
    compute_loss: Loss,
    accumulating: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Adds the gradients of the loss over all parts, with one part in memory at a time (GradCache, arXiv 2101.06983).

    Each part is encoded twice and must give the same latents both times. The first pass has no gradients: it gives the
    loss and its gradient by the latents. The second pass carries that gradient on. `accumulating` surrounds all second
    passes except the last. Returns the loss.
    """
    with torch.no_grad():
        encoded = [encode() for encode in parts]
    images, texts = (torch.cat(latents).requires_grad_() for latents in zip(*encoded, strict=True))
    loss = compute_loss(images, texts)
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
