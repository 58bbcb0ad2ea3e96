"""Latents on a plane, where similar ones are close: t-SNE (van der Maaten & Hinton, JMLR 2008)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ctclip_model.config import EvaluationConfig

COMPONENTS = 50  # principal components given to t-SNE, as by its authors
MIN_ITEMS = 4  # fewest items that a plane can show

Floats = NDArray[np.floating]


def draw_items(count: int, config: EvaluationConfig) -> NDArray[np.int64]:
    """The sorted indices of the items to project: all of `count`, or a random sample that takes seconds."""
    drawn = np.random.default_rng(config.seed).permutation(count)[: config.projection_items]
    return np.sort(drawn)


def project(latents: Floats, config: EvaluationConfig) -> NDArray[np.float64]:
    """Points (N, 2) of latents (N, d), the same for the same seed. Fewer than four latents have no points."""
    if len(latents) < MIN_ITEMS:
        return np.empty((0, 2))
    with threadpool_limits(1):  # more threads cost more in waits than they save, and change the sums
        components = PCA(min(COMPONENTS, *latents.shape), random_state=config.seed)
        reduced = components.fit_transform(latents.astype(np.float64))
        plane = TSNE(
            perplexity=min(config.projection_perplexity, (len(latents) - 1) / 3),
            max_iter=config.projection_steps,
            init="pca",
            random_state=config.seed,
        ).fit_transform(reduced)
    return plane.astype(np.float64)
