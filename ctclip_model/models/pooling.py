"""Pooling of the image encoder's tokens to the features of one linear map, the image latent's.

Each pooling is a weighted sum of tokens. So the latent before normalisation splits exactly by tokens, which is what
evidence of a score needs. Tokens have the shape (B, depth, height, width, dim) of the patch grid.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctclip_model.config import Pooling, VisionConfig

FIRST_REACH = 0.5  # standard deviation of a query's first weights, as a share of the distance between two queries


class TokenPooling(nn.Module, ABC):
    """Tokens (B, depth, height, width, dim) to features (B, features)."""

    features: int

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    @abstractmethod
    def split(self, gradients: Tensor, tokens: Tensor) -> Tensor:
        """Parts (L, depth, height, width) of linear functions of the features, with gradients (L, features).

        `tokens` are of one volume, (depth, height, width, dim). The parts add up to the functions' values.
        """


class ColumnPooling(TokenPooling):
    """The published pooling: the mean over depth, flattened. Features do not know the depth of a token."""

    def __init__(self, config: VisionConfig) -> None:
        _, height, width = config.grid
        super().__init__(height * width * config.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1).flatten(1)

    def split(self, gradients: Tensor, tokens: Tensor) -> Tensor:
        depth, height, width, dim = tokens.shape
        per_token = gradients.view(-1, height * width, dim)
        parts = torch.einsum("lpc,dpc->ldp", per_token, tokens.flatten(1, 2)) / depth
        return parts.unflatten(2, (height, width))


class PatchPooling(TokenPooling):
    """Every patch on its own: a few features of each token, flattened. It knows where in the volume a token is."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(math.prod(config.grid) * config.patch_features)
        self.narrow = nn.Linear(config.dim, config.patch_features, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        narrowed: Tensor = self.narrow(tokens)
        return narrowed.flatten(1)

    def split(self, gradients: Tensor, tokens: Tensor) -> Tensor:
        narrowed = self.narrow(tokens)
        return torch.einsum("ldhwf,dhwf->ldhw", gradients.view(-1, *narrowed.shape), narrowed)


class AttentionPooling(TokenPooling):
    """Learned queries, each a weighted mean of all tokens. Weights depend on what a token holds and where it is.

    The queries start on a coarse grid over the volume, each with a Gaussian of weights around its place: with equal
    weights at the start all queries would see the same mean, and learn late which part of the volume is theirs.
    """

    def __init__(self, config: VisionConfig) -> None:
        places = _place_queries(config.grid, config.queries)
        super().__init__(len(places) * config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.score = nn.Linear(config.dim, len(places), bias=False)
        self.place = nn.Parameter(places)  # (queries, depth, height, width)
        nn.init.zeros_(self.score.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.weigh(tokens) @ tokens.flatten(1, 3)).flatten(1)

    def weigh(self, tokens: Tensor) -> Tensor:
        """The weight of each token for each query, (B, queries, tokens). A query's weights add up to 1."""
        scores = self.score(self.norm(tokens)).flatten(1, 3).transpose(1, 2)
        return (scores + self.place.flatten(1)).softmax(dim=-1)

    def split(self, gradients: Tensor, tokens: Tensor) -> Tensor:
        """Parts as in `TokenPooling.split`. They are exact: a token's part has the weights that it was given."""
        weights = self.weigh(tokens[None])[0]
        per_query = gradients.view(-1, len(weights), tokens.shape[-1])
        parts = torch.einsum("lqt,qt->lt", per_query @ tokens.flatten(0, 2).t(), weights.to(per_query))
        return parts.unflatten(1, tokens.shape[:3])


POOLINGS: dict[Pooling, Callable[[VisionConfig], TokenPooling]] = {
    Pooling.columns: ColumnPooling,
    Pooling.patches: PatchPooling,
    Pooling.attention: AttentionPooling,
}


def _place_queries(grid: tuple[int, int, int], queries: int) -> Tensor:
    """Logarithms of the first weights (queries, depth, height, width): Gaussians around the middles of equal boxes.

    The boxes split each axis of the grid `queries` times, or for each token where the axis has fewer.
    """
    axes = [_place_on_axis(size, min(size, queries)) for size in grid]  # each (queries, size)
    depth, height, width = axes
    places = depth[:, None, None, :, None, None] + height[None, :, None, None, :, None]
    return (places + width[None, None, :, None, None, :]).flatten(0, 2)


def _place_on_axis(size: int, queries: int) -> Tensor:
    tokens, middles = (torch.arange(count) + 0.5 for count in (size, queries))
    distance = tokens / size * queries - middles[:, None]  # in boxes
    return -((distance / FIRST_REACH) ** 2) / 2
