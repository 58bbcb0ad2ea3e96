"""Heads on CT-CLIP's image latents: LiPro, a linear classifier of the findings of a label set."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ctclip_model.config import CTCLIPConfig, ExternalConfig
from ctclip_model.data.label_sets import CT_RATE_18
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.external import ExternalModel


class LatentClassifier(nn.Linear):
    """ReLU, dropout in training, and a linear layer: unit image latents (B, latent) to logits (B, findings)."""

    def __init__(self, latent_dim: int, dropout: float = 0.0, *, findings: int = len(CT_RATE_18)) -> None:
        super().__init__(latent_dim, findings)
        self.dropout = dropout

    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(F.dropout(latents.relu(), self.dropout, self.training))

    @torch.inference_mode()
    def probabilities(self, latents: NDArray[np.floating]) -> NDArray[np.float64]:
        """The probability (N, findings) of each finding, in the order of its label set, from unit latents (N, latent).

        The head must be in evaluation mode: in training mode dropout changes the result.
        """
        logits = self(torch.tensor(latents, dtype=self.weight.dtype, device=self.weight.device))
        probabilities: NDArray[np.float64] = logits.double().sigmoid().cpu().numpy()
        return probabilities


class LiPro(nn.Module):
    """CT-CLIP and a linear head on its image latents. The keys of `state_dict` are those of the published file.

    The head fits the latents of its own trunk. The published file's trunk differs from the published CT-CLIP, because
    the code book drifted while the head was trained. `findings` is the size of the head's label set.

    The trunk may be an encoder of another package. The weights are then those of the head alone.
    """

    def __init__(self, config: CTCLIPConfig | ExternalConfig, *, findings: int = len(CT_RATE_18)) -> None:
        super().__init__()
        self.config = config
        self.trained_model = ExternalModel(config) if isinstance(config, ExternalConfig) else CTCLIP(config)
        self.classifier = LatentClassifier(config.latent_dim, findings=findings)

    def forward(self, volume: Tensor) -> Tensor:
        """Logits (B, findings) of volumes (B, 1, depth, height, width) in [-1, 1]."""
        logits: Tensor = self.classifier(self.trained_model.encode_image(volume))
        return logits
