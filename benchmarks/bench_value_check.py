"""False alarms and misses of the judge of values, on generated volumes of many kinds of body, padding and damage."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ctclip_model.data.value_check import judge_values

PADDINGS = (None, -1000, -1024, -2000, -2048, -3024, -3072, -8192, -32768, 0)
SHAPE = (36, 64, 64)  # depth, height, width
BODIES = ("chest", "head", "abdomen", "neck")

DAMAGES: dict[str, Callable[[NDArray], NDArray]] = {
    "stored values": lambda hu: np.where(hu < -1100, hu, np.maximum(hu, -1024) + 1024),
    "rescaled twice": lambda hu: hu - 1024,
    "inverted": lambda hu: -hu,
    "0 to 1": lambda hu: np.clip((hu + 1000) / 2000, 0, 1),
    "0 to 255": lambda hu: np.rint(np.clip((hu + 1000) / 2000, 0, 1) * 255),
    "z-scores": lambda hu: (hu - hu.mean()) / hu.std(),
    "mask": lambda hu: np.digitize(hu, [-900, -300, -20, 200]).astype(float),
    "wrapped": lambda hu: np.abs(hu),
    "unsigned": lambda hu: np.where(hu < 0, hu + 65536, hu),
    "moved by 32768": lambda hu: hu + 32768,
    "negatives cut": lambda hu: np.maximum(hu, 0),
}


def draw_volume(rng: Generator, kind: str) -> NDArray:
    """A random volume in HU (depth, height, width)."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
    hu = np.full(SHAPE, -1000.0)
    size = rng.uniform(0.45, 1.3)  # above 1 the body fills the field of view
    half_x, half_y = size * rng.uniform(0.8, 1.0), size * rng.uniform(0.6, 0.85)

    def paint(cx, cy, cz, rx, ry, rz, value, where=None):
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1
        hu[inside if where is None else inside & where] = value

    def texture(low, high):  # bone is cortical here and spongy there
        return low + (high - low) * rng.random(SHAPE) ** 2

    fat = rng.uniform(0.02, 0.35)
    muscle = rng.uniform(20, 70)
    bone = rng.uniform(250, 1200)
    if kind == "head":
        half_x, half_y = min(half_x, 0.8), min(half_y, 0.8)
        paint(0, 0, 0, half_x, half_y, 5, rng.uniform(-110, 20))
        paint(0, 0, 0, half_x * 0.95, half_y * 0.95, 5, bone + 300)
        hu[hu == bone + 300] = texture(300, 1800)[hu == bone + 300]
        skull = rng.uniform(0.82, 0.91)
        paint(0, 0, 0, half_x * skull, half_y * skull, 5, rng.uniform(25, 40))
        if rng.random() < 0.5:
            paint(0, -0.6 * half_y, 0.4, 0.2 * half_x, 0.15 * half_y, 0.3, -1000)
    else:
        paint(0, 0, 0, half_x, half_y, 9, rng.uniform(-115, -85))
        paint(0, 0, 0, half_x * (1 - fat), half_y * (1 - fat), 9, muscle)
        paint(0, 0.6 * half_y, 0, 0.13 * half_x, 0.14 * half_y, 9, bone)
        hu[hu == bone] = texture(120, 1.5 * bone)[hu == bone]
        for _ in range(rng.integers(15, 60)):  # fat between the organs
            centre = rng.uniform(-0.7, 0.7, 3)
            paint(*centre * (half_x, half_y, 1), *rng.uniform(0.05, 0.2, 3), rng.uniform(-115, -80), hu == muscle)
    if kind == "chest":
        lung = rng.uniform(-950, -650) if rng.random() < 0.85 else rng.uniform(-500, 0)
        for side in (-1, 1):
            if rng.random() < 0.03:
                lung = 20.0
            paint(
                side * 0.42 * half_x,
                0,
                rng.uniform(-0.2, 0.2),
                0.34 * half_x,
                0.62 * half_y,
                rng.uniform(0.5, 1.6),
                lung,
            )
        for _ in range(rng.integers(0, 60)):  # effusions, consolidations, nodules, fibrosis
            centre = rng.uniform(-0.8, 0.8, 3)
            radius = rng.uniform(0.02, 0.25)
            paint(*centre * (half_x, half_y, 1), radius, radius, radius, rng.uniform(-700, 80), hu == lung)
        for height in np.linspace(-0.9, 0.9, 7):
            paint(
                0,
                0,
                height,
                0.93 * half_x,
                0.93 * half_y,
                0.05,
                bone * 0.7,
                (hu > -200) & (hu < 100) & (rng.random(SHAPE) < 0.4),
            )
        paint(0.1 * half_x, -0.1 * half_y, -0.2, 0.3 * half_x, 0.3 * half_y, 0.5, muscle + rng.choice([0, 100, 300]))
    if kind == "abdomen":
        for _ in range(rng.integers(0, 8)):
            centre = rng.uniform(-0.6, 0.6, 3)
            paint(*centre * (half_x, half_y, 1), *rng.uniform(0.03, 0.2, 3), rng.choice([-1000, -600, 20, 200]))
        paint(-0.4 * half_x, -0.1 * half_y, 0.3, 0.35 * half_x, 0.4 * half_y, 0.7, rng.uniform(-20, 130))
    if rng.random() < 0.4:
        for _ in range(rng.integers(1, 5)):  # metal and contrast
            centre = rng.uniform(-0.7, 0.7, 3)
            paint(*centre * (half_x, half_y, 1), *rng.uniform(0.02, 0.12, 3), rng.uniform(300, 3071))
    hu = gaussian_filter(hu, rng.uniform(0.2, 0.9))
    hu += rng.normal(0, 1, SHAPE) * rng.choice([6, 12, 25, 50, 90])
    hu = np.rint(np.maximum(hu, rng.choice([-1024, -1200, -3000], p=[0.8, 0.1, 0.1])))
    if rng.random() < 0.1:
        hu = np.clip(hu, -1000, 1000)  # as the published preprocessing leaves them
    return hu


def pad(hu: NDArray, rng: Generator, padding: int | None) -> NDArray:
    """The volume with a circular field of view."""
    if padding is None:
        return hu
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE[1:]), indexing="ij")
    outside = x**2 + y**2 > rng.uniform(0.8, 1.0) ** 2
    value = padding + (rng.integers(-1, 2, SHAPE) if rng.random() < 0.3 else 0)
    return np.where(outside[None], value, hu)


def main(count: int = 2000) -> None:
    rng = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    alarms: list[str] = []
    found: Counter[str] = Counter()
    missed: list[str] = []
    for number in range(count):
        kind = str(rng.choice(BODIES, p=[0.55, 0.15, 0.25, 0.05]))
        padding = PADDINGS[rng.integers(len(PADDINGS))]
        hu = draw_volume(rng, kind)
        whole = pad(hu, rng, padding)
        if fault := judge_values(whole):
            alarms.append(f"{number} {kind} padding {padding}: {fault.reason}: {fault.evidence}")
        for name, damage in DAMAGES.items():
            damaged = damage(whole)
            if judge_values(damaged):
                found[name] += 1
            else:
                missed.append(f"{number} {kind} padding {padding}: {name}")
    print(f"false alarms: {len(alarms)} of {count} ({len(alarms) / count:.2%})")
    for name in DAMAGES:
        print(f"{name:16} found {found[name] / count:.2%}")
    for line in (alarms + missed)[: int(sys.argv[3]) if len(sys.argv) > 3 else 10]:
        print("  ", line)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
