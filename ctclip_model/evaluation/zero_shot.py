"""Zero-shot classification by the prompts "X is present." and "X is not present." (arXiv 2403.17834)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ctclip_model.errors import CheckpointError

Floats = NDArray[np.floating]


def zero_shot(image_latents: Floats, prompt_latents: Floats, logit_scale: float) -> NDArray[np.float64]:
    """Probabilities (N, L) of the abnormalities: the share of "present" in the softmax over both scaled similarities.

    `image_latents` (N, d) and `prompt_latents` (L, 2, d) [present, not present] are L2-normalised. `logit_scale` is
    exp(temperature). Raises `ValueError` for other shapes. Raises `CheckpointError` for a factor that is no positive
    number, since probabilities would be NaN or all 0.5.
    """
    if not 0 < logit_scale < np.inf:
        raise CheckpointError(f"exp(temperature) is {logit_scale:g}, which is no positive number: the model is damaged")
    if prompt_latents.ndim != 3 or prompt_latents.shape[1:] != (2, image_latents.shape[-1]):
        raise ValueError(f"prompt latents {prompt_latents.shape} are not (L, 2, {image_latents.shape[-1]})")
    present, absent = prompt_latents[:, 0].astype(np.float64), prompt_latents[:, 1].astype(np.float64)
    margin = logit_scale * (image_latents.astype(np.float64) @ (present - absent).T)
    return np.exp(-np.logaddexp(0.0, -margin))  # the softmax of two is the logistic function, here without overflow


def by_scan(
    items: Sequence[str], scan_ids: Sequence[str], probabilities: Floats
) -> tuple[list[str], NDArray[np.float64]]:
    """Averages probabilities (N, L) over the reconstructions of each scan.

    `items` (N,) are volume names, `scan_ids` (N,) their scans. Returns the scans, in the order of their first
    reconstruction, and the means (scans, L). Raises `ValueError` for a repeated volume, which would count twice.
    """
    if not len(items) == len(scan_ids) == len(probabilities):
        raise ValueError(f"{len(items)} items, {len(scan_ids)} scans and {len(probabilities)} probabilities")
    if len(set(items)) < len(items):
        raise ValueError("a volume is there more than once")
    scans = list(dict.fromkeys(scan_ids))
    indices = {scan: index for index, scan in enumerate(scans)}
    rows = np.array([indices[scan] for scan in scan_ids], dtype=np.int64)
    sums = np.zeros((len(scans), probabilities.shape[1]))
    np.add.at(sums, rows, probabilities)
    return scans, sums / np.bincount(rows, minlength=len(scans))[:, None]
