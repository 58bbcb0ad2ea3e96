"""Warnings about a volume that is read without metadata. They never stop a run."""

from __future__ import annotations

import math

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes

from ctclip_model.data.nifti import NiftiHeader
from ctclip_model.data.volume import SPACING_TOLERANCE, ConvertedVolume

BLANK_SPACING_MM = (1.0, 1.0, 1.0)  # spacing that many tools write if they know none
AIR_HU = -500  # every chest CT has voxels below this


def list_doubts(header: NiftiHeader, volume: ConvertedVolume) -> list[str]:
    """Notes for a person about the spacing, the order of the axes and the unit of the values."""
    doubts = []
    used = f"{_by(volume.spacing_mm)} mm"
    if volume.spacing_mm == BLANK_SPACING_MM:
        doubts.append(f"spacing in doubt: {used} also stands in headers without a spacing")
    if header.affine is not None and np.isfinite(header.affine).all():
        affine_mm = voxel_sizes(header.affine)
        if not np.allclose(affine_mm, volume.spacing_mm, rtol=SPACING_TOLERANCE, atol=0):
            doubts.append(f"spacing in doubt: used {used}, and the header's affine says {_by(affine_mm)} mm")
        axes = aff2axcodes(header.affine)
        if axes[2] not in ("S", "I"):
            doubts.append(f"orientation in doubt: slices are not axial (axes {''.join(map(str, axes))})")
    if volume.hu_min > AIR_HU:
        doubts.append(f"values in doubt: {volume.hu_min} to {volume.hu_max} hold no air, so they may not be HU")
    return doubts


def _by(spacing_mm: tuple[float, ...] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in spacing_mm if math.isfinite(value))
