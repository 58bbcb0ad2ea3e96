"""Latents on a plane, for a look at what a model holds to be alike: t-SNE (van der Maaten & Hinton, JMLR 2008)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ctclip_model.config import EvaluationConfig

COMPONENTS = 50  # that t-SNE starts from, as its authors do
FEWEST = 4  # items of which a plane can show anything

Floats = NDArray[np.floating]


def draw_items(count: int, config: EvaluationConfig) -> NDArray[np.int64]:
    """Which of so many items to project, in their order: all, or as many as take seconds."""
    drawn = np.random.default_rng(config.seed).permutation(count)[: config.projection_items]
    return np.sort(drawn)


def project(latents: Floats, config: EvaluationConfig) -> NDArray[np.float64]:
    """A point (N, 2) for each of N latents (N, d); the same again for the same seed. No points of fewer than four."""
    if len(latents) < FEWEST:
        return np.empty((0, 2))
    with threadpool_limits(1):  # of more threads t-SNE's waits cost more than they bring, and its sums change
        few = PCA(min(COMPONENTS, *latents.shape), random_state=config.seed).fit_transform(latents.astype(np.float64))
        plane = TSNE(
            perplexity=min(config.projection_perplexity, (len(latents) - 1) / 3),
            max_iter=config.projection_steps,
            init="pca",
            random_state=config.seed,
        ).fit_transform(few)
    return plane.astype(np.float64)
