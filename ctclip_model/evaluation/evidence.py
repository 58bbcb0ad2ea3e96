"""Evidence of a score: its exact split into one part for each patch of the image encoder's token grid.

With the published pooling, the image latent before normalisation is linear in the tokens t of the grid (depth D,
height, width). With W_hw, the columns of `to_visual_latent` at a place (h, w),

    z = 1/D * sum_dhw W_hw t_dhw            and the unit latent is u = z / |z|.

A score is a linear function of the unit latent, s = g . u + c. So it is the sum of its parts and a constant:

    part_dhw = g . W_hw t_dhw / (D |z|)     and s = sum_dhw part_dhw + c.

CT-CLIP and VocabFine score a pair of prompts by the difference of the two logits, whose logistic function is the
probability: g = exp(temperature) (present - not present), c = 0. LiPro's logit has its rectifier's mask in g: g = w
where u > 0 and 0 elsewhere, and c is its bias.

Under other poolings (`models.pooling`) features are weighted sums of tokens too, and scores split in the same way. The
weights of pooling by attention depend on the tokens. A part has the weights that its token was given.

Tokens have seen other tokens by attention. A part says from which token the model reads a score. An abnormality may lie
in another patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctclip_model.evaluation.embed import Floats
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.heads import LatentClassifier

LEAST_NORM = 1e-12  # as in the normalisation of latents


@dataclass(frozen=True)
class Readout:
    """Scores as linear functions of a unit latent: gradients (L, latent) and constants (L,)."""

    gradients: NDArray[np.float64]
    constants: NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """The parts (L, depth, height, width) of L scores, one for each patch, and the scores' constants (L,)."""

    parts: Floats
    constants: NDArray[np.float64]

    @property
    def scores(self) -> NDArray[np.float64]:
        """The scores (L,): logits, whose logistic function is the probability."""
        scores: NDArray[np.float64] = self.parts.sum(axis=(1, 2, 3), dtype=np.float64) + self.constants
        return scores

    def strongest(self, inside: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
        """The patch (depth, height, width) of each score's largest part, (L, 3).

        `inside` (depth, height, width) says which patches count, by default all.
        """
        parts = self.parts if inside is None else np.where(inside, self.parts, -np.inf)
        flat = parts.reshape(len(parts), -1).argmax(axis=1)
        return np.stack(np.unravel_index(flat, parts.shape[1:]), axis=1)


def read_prompts(prompt_latents: Floats, logit_scale: float) -> Readout:
    """The readout of prompt pairs (L, 2, latent) [present, not present], as `zero_shot` scores them."""
    prompts = prompt_latents.astype(np.float64)
    return Readout(logit_scale * (prompts[:, 0] - prompts[:, 1]), np.zeros(len(prompts)))


def read_head(head: LatentClassifier, latent: Floats) -> Readout:
    """The readout of LiPro's logits at a unit latent (latent,), the rectifier's mask included."""
    weight, bias = (part.detach().double().cpu().numpy() for part in (head.weight, head.bias))
    return Readout(weight * (latent > 0), bias)


@torch.inference_mode()
def split_scores(model: CTCLIP, readout: Readout, tokens: Tensor, norm: Tensor) -> Evidence:
    """Splits scores by the tokens (depth, height, width, dim) of a forward pass.

    `norm` is the latent's norm before normalisation (see `embed_with_tokens`). Parts are computed in float32. In
    float32 they add up to the score within 1e-5. Autocast rounds the score itself to three digits.
    """
    weight = model.to_visual_latent.weight
    parts = model.pooling.split(_project(readout.gradients, weight), tokens.to(weight)).float()
    return Evidence((parts / norm.clamp_min(LEAST_NORM)).cpu().numpy(), readout.constants)


def _project(gradients: NDArray[np.float64], weight: Tensor) -> Tensor:
    """Gradients (L, latent) of latents as gradients (L, features) of what a linear map without bias takes.

    For so few rows NumPy's BLAS takes a third of the time of PyTorch's on an AMD EPYC.
    """
    if weight.is_cuda:
        return torch.from_numpy(gradients).to(weight) @ weight
    return torch.from_numpy(gradients.astype(np.float32) @ weight.detach().numpy())
