"""What speaks against a volume that nothing but its own file describes; none of it stops anybody."""

from __future__ import annotations

import math

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes

from ctclip_model.data.nifti import NiftiHeader
from ctclip_model.data.volume import SPACING_TOLERANCE, ConvertedVolume

BLANK_SPACING_MM = (1.0, 1.0, 1.0)  # what many tools write where they know none
AIR_HU = -500  # every chest CT holds voxels below it


def list_doubts(header: NiftiHeader, volume: ConvertedVolume) -> list[str]:
    """Notes for a person, each a clause: spacing that may be none, axes in another order, values that are not HU."""
    doubts = []
    used = f"{_by(volume.spacing_mm)} mm"
    if volume.spacing_mm == BLANK_SPACING_MM:
        doubts.append(f"spacing in doubt: {used} is also what stands in a header without one")
    if header.affine is not None and np.isfinite(header.affine).all():
        of_affine = voxel_sizes(header.affine)
        if not np.allclose(of_affine, volume.spacing_mm, rtol=SPACING_TOLERANCE, atol=0):
            doubts.append(f"spacing in doubt: used {used}, and the header's affine says {_by(of_affine)} mm")
        axes = aff2axcodes(header.affine)
        if axes[2] not in ("S", "I"):
            doubts.append(f"orientation in doubt: slices are not axial (axes {''.join(map(str, axes))})")
    if volume.hu_min > AIR_HU:
        doubts.append(f"values in doubt: {volume.hu_min} to {volume.hu_max} hold no air, so they may not be HU")
    return doubts


def _by(spacing_mm: tuple[float, ...] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in spacing_mm if math.isfinite(value))
