"""CT-CLIP: an image and a text encoder whose latents agree on a volume and its report (arXiv 2403.17834)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctclip_model.config import CTCLIPConfig
from ctclip_model.models.bert import first_token, run_layer
from ctclip_model.models.pooling import POOLINGS, TokenPooling
from ctclip_model.models.text import build_text_encoder
from ctclip_model.models.vision import CTViT


class CTCLIP(nn.Module):
    """The two encoders, a linear map from each to the shared latent space, and the temperature of their similarity.

    The keys of `state_dict` are those of the published weights, and the pooling's where it has weights. No result
    depends on the `_extra` maps, the text encoder's pooler and the image decoder: they only keep the keys complete and
    take no gradient.
    """

    def __init__(self, config: CTCLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.text_transformer = build_text_encoder(config.text)
        self.visual_transformer = CTViT(config.vision)
        self.to_text_latent = nn.Linear(config.text.hidden_size, config.latent_dim, bias=False)
        self.pooling: TokenPooling = POOLINGS[config.vision.pooling](config.vision)
        image_features = self.pooling.features
        self.to_visual_latent = nn.Linear(image_features, config.latent_dim, bias=False)
        self.to_text_latent_extra = nn.Linear(config.text.hidden_size, config.latent_dim, bias=False)
        self.to_visual_latent_extra = nn.Linear(image_features, config.latent_dim, bias=False)
        for unused in (self.to_text_latent_extra, self.to_visual_latent_extra, self.text_transformer.pooler):
            unused.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.temperature.device

    @property
    def logit_scale(self) -> float:
        """The factor on similarities, exp(temperature)."""
        return self.temperature.exp().item()

    def forward(self, volume: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The contrastive loss of a batch of volumes (B, 1, depth, height, width) and their reports (B, tokens)."""
        return contrastive_loss(
            self.encode_image(volume), self.encode_text(input_ids, attention_mask), self.temperature
        )

    def image_tokens(self, volume: Tensor) -> Tensor:
        """The image encoder's quantized tokens, (B, depth, height, width, dim) of the patch grid."""
        return self.visual_transformer(volume)

    def unquantized_tokens(self, volume: Tensor) -> Tensor:
        """The image encoder's tokens before quantization, (B, depth, height, width, dim) of the patch grid."""
        return self.visual_transformer.encode(self.visual_transformer.embed(volume))

    def encode_image(self, volume: Tensor) -> Tensor:
        """Unit latents (B, latent) of volumes (B, 1, depth, height, width) in [-1, 1]."""
        return F.normalize(self.project_image(self.visual_transformer.pooled(volume, self.pooling)), dim=-1)

    def project_image(self, features: Tensor) -> Tensor:
        """Image latents (B, latent) before normalisation, of pooled tokens (B, features)."""
        latents: Tensor = self.to_visual_latent(features)
        return latents.float()

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit latents (B, latent) of token ids and their mask, both (B, tokens)."""
        return self.project_text(first_token(self.text_transformer, input_ids, attention_mask))

    def project_text(self, states: Tensor) -> Tensor:
        """Unit latents (B, latent) of the text encoder's first tokens (B, hidden)."""
        return F.normalize(self.to_text_latent(states).float(), dim=-1)

    def compile_layers(self) -> None:
        """Compiles the layers of both encoders, in place of running them operator by operator."""
        self.visual_transformer.compile_layers()
        self.text_transformer.run_layer = torch.compile(run_layer)

    def update_codebook(self) -> None:
        """Moves the image encoder's codes by the tokens that forward passes recorded since the last call."""
        self.visual_transformer.vq.update()


def contrastive_loss(image_latents: Tensor, text_latents: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of pairing images and texts, as in CLIP (arXiv 2103.00020).

    Both latents are unit vectors (B, latent). Row i of one belongs to row i of the other. `logit_scale` is the
    logarithm of the factor on their similarity.
    """
    logits = similarity(text_latents, image_latents, logit_scale)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2


def similarity(latents: Tensor, others: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled cosine similarities (N, M) of unit latents (N, latent) and (M, latent), without autocast."""
    with torch.autocast(latents.device.type, enabled=False):
        return latents @ others.t() * logit_scale.exp()
