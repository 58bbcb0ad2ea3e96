"""CT volumes for benchmarks: a body with lungs and correlated noise, as hard to compress as a real scan."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SPACING_MM = (0.7, 0.7, 1.25)  # along the first, second and third axis, for 512 x 512 voxels
DENSITIES = (  # half axes along x and y, centre along x, HU: a later ellipse covers the earlier ones
    (0.78, 0.55, 0.0, -100),
    (0.72, 0.49, 0.0, 45),
    (0.27, 0.38, -0.34, -870),
    (0.27, 0.38, 0.34, -870),
    (0.06, 0.06, 0.0, 400),
)


def write_volume(path: Path, side: int, slices: int, *, seed: int = 0) -> None:
    """Writes a chest-like int16 volume of (side, side, slices) voxels as v2 stores them.

    Voxels are HU, the file is compressed by gzip, and -1024 fills the outside of the circle.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    plane = np.full((side, side), -1000, np.float32)
    for half_x, half_y, centre, hu in DENSITIES:
        plane[((x - centre) / half_x) ** 2 + (y / half_y) ** 2 < 1] = hu
    noise_hu = np.where(plane < -900, 12, np.where(plane < -500, 40, 20)).astype(np.float32)
    is_outside = x**2 + y**2 > 1
    volume = np.empty((slices, side, side), np.int16)  # (third, second, first axis), the order in the file
    for index in range(slices):
        noise = rng.standard_normal((side + 1, side + 1), dtype=np.float32)
        noise = (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]) / 2  # smoothed as by a soft kernel
        hu = np.rint(plane + noise_hu * noise + 15 * np.sin(index / 9 + 6 * x))
        volume[index] = np.where(is_outside, -1024, np.maximum(hu, -1024))
    image = nib.Nifti1Image(
        volume.T, np.diag([SPACING_MM[0] * 512 / side, SPACING_MM[1] * 512 / side, SPACING_MM[2], 1])
    )
    image.header.set_slope_inter(1, 0)
    nib.save(image, path)
