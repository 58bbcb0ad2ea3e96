"""Latents on a plane, where similar ones are close: t-SNE (van der Maaten & Hinton, JMLR 2008)."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ctclip_model.config import EvaluationConfig
from ctclip_model.seeds import scikit_learn_seed

COMPONENTS = 50  # principal components given to t-SNE, as by its authors
MIN_ITEMS = 4  # fewest items that a plane can show
LEAST_SPREAD = 1e-6  # spread beside the largest value, below which latents differ by the rounding of float32 alone

Floats = NDArray[np.floating]

logger = logging.getLogger(__name__)


def draw_items(count: int, config: EvaluationConfig) -> NDArray[np.int64]:
    """The sorted indices of the items to project: all of `count`, or a random sample that takes seconds."""
    drawn = np.random.default_rng(config.seed).permutation(count)[: config.projection_items]
    return np.sort(drawn)


def project(latents: Floats, config: EvaluationConfig) -> NDArray[np.float64]:
    """Points (N, 2) of latents (N, d), the same for the same seed.

    There are no points, (0, 2), for fewer than four latents, latents of width 1, latents that are all equal, and
    latents or points that are not finite. scikit-learn's t-SNE divides by the variance and reads foreign memory if a
    coordinate is NaN, so that the process dies.
    """
    scaled = _scale(latents)
    if scaled is None:
        return np.empty((0, 2))
    with threadpool_limits(1):  # more threads cost more in waits than they save, and change the sums
        components = PCA(min(COMPONENTS, *scaled.shape), random_state=scikit_learn_seed(config.seed))
        plane = TSNE(
            perplexity=min(config.projection_perplexity, (len(scaled) - 1) / 3),
            max_iter=config.projection_steps,
            init="pca",
            random_state=scikit_learn_seed(config.seed),
        ).fit_transform(components.fit_transform(scaled))
    return plane.astype(np.float64) if np.isfinite(plane).all() else np.empty((0, 2))


def _scale(latents: Floats) -> NDArray[np.float64] | None:
    """Latents with mean 0 and a largest value of 1, as t-SNE reads float32. None if they have no plane."""
    if len(latents) < MIN_ITEMS or latents.shape[1] < 2:
        return None
    if not np.isfinite(latents).all():
        logger.warning("no projection: latents are not finite numbers")
        return None
    wide = latents.astype(np.float64)
    largest = np.abs(wide).max() or 1.0
    centred = wide / largest - (wide / largest).mean(axis=0)  # divided first, since sums of huge values overflow
    spread = np.abs(centred).max()
    if spread <= LEAST_SPREAD:
        logger.warning("no projection: the %d latents are all equal", len(latents))
        return None
    scaled: NDArray[np.float64] = centred / spread
    return scaled
