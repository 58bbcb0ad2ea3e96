"""Published preprocessing, written plainly. Benchmarks and tests compare our conversion with it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from ctclip_model.config import Recipe


def load_volume_plainly(path: Path, recipe: Recipe) -> torch.Tensor:
    """One volume, (1, depth, height, width), prepared as the published inference code does it.

    The volume is held in float64 and resampled by `F.interpolate`.
    """
    image = nib.load(path)
    values = np.clip(image.get_fdata(), *recipe.window_hu)  # (height, width, depth)
    spacing = dict(zip(("height", "width", "depth"), image.header.get_zooms(), strict=True))
    target = dict(zip(("depth", "height", "width"), recipe.spacing_mm, strict=True))
    axes = ("depth", "height", "width")
    tensor = torch.from_numpy(values).permute(2, 0, 1)[None, None]
    size = [int(n * (float(spacing[axis]) / target[axis])) for n, axis in zip(tensor.shape[2:], axes, strict=True)]
    resampled = F.interpolate(tensor, size=size, mode="trilinear", align_corners=False)[0] / 1000
    for axis, wanted in enumerate(recipe.shape, start=1):
        start = max((resampled.shape[axis] - wanted) // 2, 0)
        resampled = resampled.narrow(axis, start, min(wanted, resampled.shape[axis]))
    padding = []
    for have, wanted in zip(reversed(resampled.shape[1:]), reversed(recipe.shape), strict=True):
        padding += [(wanted - have) // 2, wanted - have - (wanted - have) // 2]
    return F.pad(resampled, padding, value=-1.0).float()
