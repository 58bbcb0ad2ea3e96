"""False alarms and misses of the judge of values, on generated volumes of many kinds of body, padding and damage.

Usage: python benchmarks/bench_value_check.py [volumes] [seed] [lines to list]
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ctclip_model.data.value_check import judge_values

PADDINGS = (None, -1000, -1024, -2000, -2048, -3024, -3072, -8192, -32768, 0)
SHAPE = (28, 48, 48)  # depth, height, width: about as many voxels as the judge samples of a volume
ALARM = "false alarm"
Point = tuple[float, float, float]  # x, y, z

BODIES = {"chest": 0.55, "head": 0.15, "abdomen": 0.25, "neck": 0.05}  # shares

DAMAGES: dict[str, Callable[[NDArray], NDArray]] = {
    "stored values": lambda hu: np.where(hu < -1100, hu, np.maximum(hu, -1024) + 1024),
    "rescaled twice": lambda hu: hu - 1024,
    "inverted": lambda hu: -hu,
    "0 to 1": lambda hu: np.clip((hu + 1000) / 2000, 0, 1),
    "0 to 255": lambda hu: np.rint(np.clip((hu + 1000) / 2000, 0, 1) * 255),
    "z-scores": lambda hu: (hu - hu.mean()) / hu.std(),
    "mask": lambda hu: np.digitize(hu, [-900, -300, -20, 200]).astype(float),
    "without a sign": np.abs,
    "unsigned": lambda hu: np.where(hu < 0, hu + 65536, hu),
    "moved by 32768": lambda hu: hu + 32768,
    "negatives cut": lambda hu: np.maximum(hu, 0),
    "window": lambda hu: np.clip(hu, -160, 240),
}


class Canvas:
    """A volume in HU (depth, height, width) with places from -1 to 1, and a brush for ellipsoids."""

    def __init__(self, rng: Generator) -> None:
        self.rng = rng
        self.z, self.y, self.x = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
        self.hu = np.full(SHAPE, -1000.0)
        size = rng.uniform(0.45, 1.3)  # above 1 the body fills the field of view
        self.half_x, self.half_y = size * rng.uniform(0.8, 1.0), size * rng.uniform(0.6, 0.85)
        self.muscle, self.bone = rng.uniform(20, 70), rng.uniform(250, 1200)

    def paint(self, centre: Point, radii: Point, value: float | NDArray, where: NDArray | bool = True) -> None:
        """Fills an ellipsoid around `centre` (x, y, z), only where `where` says so."""
        axes = zip((self.x, self.y, self.z), centre, radii, strict=True)
        inside = sum(((axis - middle) / radius) ** 2 for axis, middle, radius in axes) < 1
        chosen = inside & where
        self.hu[chosen] = value if np.isscalar(value) else np.asarray(value)[chosen]

    def place(self, share: float) -> Point:
        """A random place within that share of the body."""
        x, y, z = self.rng.uniform(-share, share, 3)
        return x * self.half_x, y * self.half_y, z

    def texture(self, low: float, high: float) -> NDArray:
        """Bone, cortical here and spongy there."""
        return low + (high - low) * self.rng.random(SHAPE) ** 2


def draw_volume(rng: Generator, kind: str) -> NDArray:
    """A random volume in HU (depth, height, width)."""
    canvas = Canvas(rng)
    if kind == "head":
        draw_head(canvas)
    else:
        draw_trunk(canvas)
    if kind == "chest":
        draw_lungs(canvas)
    if kind == "abdomen":
        for _ in range(rng.integers(0, 8)):
            canvas.paint(canvas.place(0.6), tuple(rng.uniform(0.03, 0.2, 3)), rng.choice([-1000, -600, 20, 200]))
        liver = (-0.4 * canvas.half_x, -0.1 * canvas.half_y, 0.3)
        canvas.paint(liver, (0.35 * canvas.half_x, 0.4 * canvas.half_y, 0.7), rng.uniform(-20, 130))
    if rng.random() < 0.4:
        for _ in range(rng.integers(1, 5)):  # metal and contrast
            canvas.paint(canvas.place(0.7), tuple(rng.uniform(0.02, 0.12, 3)), rng.uniform(300, 3071))
    hu = gaussian_filter(canvas.hu, rng.uniform(0.2, 0.9))
    hu += rng.normal(0, 1, SHAPE) * rng.choice([6, 12, 25, 50, 90])
    hu = np.rint(np.maximum(hu, rng.choice([-1024, -1200, -3000], p=[0.8, 0.1, 0.1])))
    # the published preprocessing leaves values clipped
    return np.clip(hu, -1000, 1000) if rng.random() < 0.1 else hu


def draw_head(canvas: Canvas) -> None:
    rng = canvas.rng
    x, y = min(canvas.half_x, 0.8), min(canvas.half_y, 0.8)
    skull = rng.uniform(0.82, 0.91)
    canvas.paint((0, 0, 0), (x, y, 5), rng.uniform(-110, 20))
    canvas.paint((0, 0, 0), (x * 0.95, y * 0.95, 5), canvas.texture(300, 1800))
    canvas.paint((0, 0, 0), (x * skull, y * skull, 5), rng.uniform(25, 40))
    if rng.random() < 0.5:
        canvas.paint((0, -0.6 * y, 0.4), (0.2 * x, 0.15 * y, 0.3), -1000)


def draw_trunk(canvas: Canvas) -> None:
    """Skin fat, muscle, a spine, and fat between the organs."""
    rng, x, y = canvas.rng, canvas.half_x, canvas.half_y
    fat = rng.uniform(0.02, 0.35)
    canvas.paint((0, 0, 0), (x, y, 9), rng.uniform(-115, -85))
    canvas.paint((0, 0, 0), (x * (1 - fat), y * (1 - fat), 9), canvas.muscle)
    canvas.paint((0, 0.6 * y, 0), (0.13 * x, 0.14 * y, 9), canvas.texture(120, 1.5 * canvas.bone))
    for _ in range(rng.integers(15, 60)):
        is_muscle = canvas.hu == canvas.muscle
        canvas.paint(canvas.place(0.7), tuple(rng.uniform(0.05, 0.2, 3)), rng.uniform(-115, -80), is_muscle)


def draw_lungs(canvas: Canvas) -> None:
    """Lungs from emphysema to consolidation, what lies in them, ribs and a heart."""
    rng, x, y = canvas.rng, canvas.half_x, canvas.half_y
    lung = rng.uniform(-950, -650) if rng.random() < 0.85 else rng.uniform(-500, 0)
    for side in (-1, 1):
        lung = 20.0 if rng.random() < 0.03 else lung
        radii = (0.34 * x, 0.62 * y, rng.uniform(0.5, 1.6))
        canvas.paint((side * 0.42 * x, 0, rng.uniform(-0.2, 0.2)), radii, lung)
    for _ in range(rng.integers(0, 60)):  # effusions, consolidations, nodules, fibrosis
        radius = rng.uniform(0.02, 0.25)
        canvas.paint(canvas.place(0.8), (radius, radius, radius), rng.uniform(-700, 80), canvas.hu == lung)
    for height in np.linspace(-0.9, 0.9, 7):
        is_rib = (canvas.hu > -200) & (canvas.hu < 100) & (rng.random(SHAPE) < 0.4)
        canvas.paint((0, 0, height), (0.93 * x, 0.93 * y, 0.05), canvas.bone * 0.7, is_rib)
    canvas.paint((0.1 * x, -0.1 * y, -0.2), (0.3 * x, 0.3 * y, 0.5), canvas.muscle + rng.choice([0, 100, 300]))


def pad(hu: NDArray, rng: Generator, padding: int | None) -> NDArray:
    """The volume with a circular field of view."""
    if padding is None:
        return hu
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE[1:]), indexing="ij")
    outside = x**2 + y**2 > rng.uniform(0.8, 1.0) ** 2
    value = padding + (rng.integers(-1, 2, SHAPE) if rng.random() < 0.3 else 0)
    return np.where(outside[None], value, hu)


def draw_case(number: int, seed: int) -> tuple[str, NDArray]:
    """Description and HU (depth, height, width) of the volume of that number, with its padding."""
    rng = np.random.default_rng((seed, number))
    kind = str(rng.choice(list(BODIES), p=list(BODIES.values())))
    padding = PADDINGS[rng.integers(len(PADDINGS))]
    return f"{number} {kind} padding {padding}", pad(draw_volume(rng, kind), rng, padding)


def find_mistakes(number: int, seed: int) -> list[tuple[str, str]]:
    """Mistakes of the judge on one volume and on its damaged twins: `ALARM` or the damage missed, and the details."""
    name, hu = draw_case(number, seed)
    missed = [(damage, name) for damage, apply in DAMAGES.items() if judge_values(apply(hu)) is None]
    fault = judge_values(hu)
    return missed if fault is None else [(ALARM, f"{name}: {fault.evidence}"), *missed]


def main(count: int = 2000, seed: int = 0, listed: int = 10) -> None:
    mistakes: list[tuple[str, str]] = []
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for done, found in enumerate(pool.imap(partial(find_mistakes, seed=seed), range(count), chunksize=20), 1):
            mistakes += found
            if done % 100 == 0:
                print(f"{done} of {count} volumes", file=sys.stderr, flush=True)
    counts = Counter(kind for kind, _ in mistakes)
    print(f"false alarms: {counts[ALARM]} of {count} ({counts[ALARM] / count:.2%})")
    for damage in DAMAGES:
        print(f"{damage:16} found {1 - counts[damage] / count:.2%}")
    for kind, name in mistakes[:listed]:
        print(f"  {kind}: {name}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
