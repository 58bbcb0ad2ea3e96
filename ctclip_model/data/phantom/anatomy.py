"""A chest made of ellipsoids: bodies that vary, abnormalities with a position in the chest, and scanners that differ.

Positions are in mm from the middle of the chest: x to the patient's left, y to the back, z to the head. Only its
position identifies an abnormality, because water, soft tissue, air and calcium occur in every chest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Point = tuple[float, float, float]

AIR_HU, FAT_HU, WATER_HU = -1000.0, -95.0, 8.0
SIDES = {"right": (-1,), "left": (1,), "bilateral": (-1, 1)}


@dataclass(frozen=True)
class Body:
    """A patient's build. Lengths are in mm, densities in HU."""

    half_width_mm: float
    half_depth_mm: float
    fat_mm: float  # thickness under the skin
    lung_scale: float
    lung_hu: float
    muscle_hu: float
    bone_hu: float
    offset_mm: Point  # the patient's offset on the table


@dataclass(frozen=True)
class Scan:
    """The content of a scan: its abnormalities, each with a side, and a seed for the rest."""

    body: Body
    abnormalities: dict[str, str]  # abnormality to "right", "left" or "bilateral"
    seed: int
    is_chest: bool = True


@dataclass(frozen=True)
class Reconstruction:
    """Settings that make a volume of a scan."""

    shape: tuple[int, int, int]  # voxels along x, y, z
    spacing_mm: tuple[float, float, float]
    noise_hu: float
    is_sharp: bool
    padding_hu: int  # HU outside the circular field of view
    seed: int


def draw_body(rng: Generator) -> Body:
    """A random build."""
    half_width = rng.uniform(122, 152)
    return Body(
        half_width_mm=half_width,
        half_depth_mm=half_width * rng.uniform(0.64, 0.76),
        fat_mm=rng.uniform(5, 22),
        lung_scale=rng.uniform(0.88, 1.06),
        lung_hu=rng.uniform(-800, -700),
        muscle_hu=rng.uniform(35, 65),
        bone_hu=rng.uniform(250, 1100),
        offset_mm=(rng.uniform(-8, 8), rng.uniform(-8, 8), rng.uniform(-10, 10)),
    )


def render(scan: Scan, reconstruction: Reconstruction) -> NDArray[np.int16]:
    """A scan's volume in HU, int16 (x, y, z). All reconstructions of a scan show the same anatomy."""
    canvas = Canvas(scan, reconstruction)
    if scan.is_chest:
        _paint_chest(canvas)
        for index, (abnormality, paint) in enumerate(PAINTERS.items()):
            if abnormality in scan.abnormalities:
                canvas.rng = np.random.default_rng([scan.seed, index])
                paint(canvas, SIDES[scan.abnormalities[abnormality]])
    else:
        _paint_head(canvas)
    return _expose(canvas.hu, reconstruction)


class Canvas:
    """A volume in HU with the positions of its voxels. Painting touches only the box around a shape."""

    def __init__(self, scan: Scan, reconstruction: Reconstruction) -> None:
        axes = zip(reconstruction.shape, reconstruction.spacing_mm, scan.body.offset_mm, strict=True)
        self.axes = [(np.arange(size) - (size - 1) / 2) * spacing - offset for size, spacing, offset in axes]
        self.spacing_mm = reconstruction.spacing_mm
        self.hu = np.full(reconstruction.shape, AIR_HU, dtype=np.float32)
        self.is_lung = np.zeros(reconstruction.shape, dtype=bool)
        self.body, self.rng = scan.body, np.random.default_rng(scan.seed)
        low, high = (1.28, 1.5) if "Cardiomegaly" in scan.abnormalities else (0.85, 1.05)
        width, depth, scale = scan.body.half_width_mm, scan.body.half_depth_mm, self.rng.uniform(low, high)
        self.heart_mm = (0.10 * width * scale, -0.20 * depth, -32.0)
        self.heart_radii_mm = (0.29 * width * scale, 0.34 * depth * scale, 40 * scale)
        self.aorta_mm = (20.0, 0.42 * depth, 0.0)

    def paint(self, centre: Point, radii: Point, hu: float, *, only_lung: bool = False, power: int = 2) -> None:
        """Fills |x/a|^power + |y/b|^power + |z/c|^power < 1, an ellipsoid for power 2, at least one voxel large."""
        box, parts = [], []
        for axis, middle, radius, spacing in zip(self.axes, centre, radii, self.spacing_mm, strict=True):
            radius = max(radius, 0.51 * spacing)
            first, last = np.searchsorted(axis, [middle - radius, middle + radius])
            box.append(slice(first, last))
            parts.append((np.abs(axis[first:last] - middle) / radius) ** power)
        x, y, z = parts
        inside = (x[:, None] + y)[:, :, None] + z < 1
        region = tuple(box)
        if only_lung:
            inside &= self.is_lung[region]
        self.hu[region][inside] = hu
        if hu > -700:
            self.is_lung[region][inside] = False

    def ball(self, centre: Point, radius: float, hu: float, *, only_lung: bool = False) -> None:
        self.paint(centre, (radius, radius, radius), hu, only_lung=only_lung)

    def lung(self, side: int) -> tuple[Point, Point]:
        """Middle and radii of a lung."""
        width, depth = self.body.half_width_mm, self.body.half_depth_mm
        return (side * 0.42 * width, 0.0, 0.0), (0.36 * width, 0.66 * depth, 120 * self.body.lung_scale)

    def point_in_lung(self, side: int, low: Point, high: Point) -> Point:
        """A random point between two points, in radii of the lung from its middle. x grows outwards."""
        centre, radii = self.lung(side)
        x, y, z = (self.rng.uniform(a, b) for a, b in zip(low, high, strict=True))
        return centre[0] + side * x * radii[0], centre[1] + y * radii[1], centre[2] + z * radii[2]


def _paint_chest(canvas: Canvas) -> None:
    body, rng = canvas.body, canvas.rng
    width, depth = body.half_width_mm, body.half_depth_mm
    canvas.paint((0, 0, 0), (width, depth, 600), -100, power=4)
    canvas.paint((0, 0, 0), (width - body.fat_mm, depth - body.fat_mm, 600), body.muscle_hu, power=4)
    for height in np.arange(-120, 140, 26) + rng.uniform(-6, 6):  # ribs, whose inside the cavity fills below
        canvas.paint((0, 0, height), (0.86 * width, 0.82 * depth, 8), body.bone_hu * 0.8)
    canvas.paint((0, 0, 20), (0.80 * width, 0.76 * depth, 190), FAT_HU)
    for side in (-1, 1):
        centre, radii = canvas.lung(side)
        canvas.paint(centre, radii, body.lung_hu, power=3)
    canvas.is_lung = canvas.hu == np.float32(body.lung_hu)
    for side in (-1, 1):  # domes of the diaphragm
        (x, y, _), radii = canvas.lung(side)
        top = rng.uniform(-82, -66)
        canvas.paint((x, y, top - 60), (1.25 * radii[0], 1.2 * radii[1], 60), body.muscle_hu)
    if rng.random() < 0.6:  # gas in the stomach
        canvas.ball((0.35 * width, -0.15 * depth, -108), rng.uniform(12, 24), -950)
    for _ in range(rng.integers(6, 18)):  # vessels
        point = canvas.point_in_lung(int(rng.choice([-1, 1])), (-0.8, -0.6, -0.5), (0.5, 0.6, 0.6))
        canvas.paint(point, (4, 4, rng.uniform(4, 16)), rng.uniform(-300, 40), only_lung=True)
    canvas.paint((0, 0.66 * depth, 0), (19, 17, 600), body.bone_hu)  # spine
    canvas.paint((0, -0.80 * depth, 30), (16, 6, 70), body.bone_hu)  # sternum
    heart, radii = canvas.heart_mm, canvas.heart_radii_mm
    canvas.paint(heart, tuple(radius + 8 for radius in radii), FAT_HU)  # type: ignore[arg-type]
    canvas.paint(heart, radii, body.muscle_hu)
    canvas.paint(canvas.aorta_mm, (14, 14, 600), body.muscle_hu)
    canvas.paint((0, 0.05 * depth, 110), (8, 8, 60), -980)  # trachea
    _paint_surroundings(canvas)


def _paint_surroundings(canvas: Canvas) -> None:
    """The table, and on some patients metal outside the body, as bright as medical material."""
    rng, depth = canvas.rng, canvas.body.half_depth_mm
    if rng.random() < 0.7:
        canvas.paint((0, depth + 16, 0), (150, 7, 600), rng.uniform(-700, -100), power=4)
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 5)):
            point = (rng.uniform(-60, 60), -depth - rng.uniform(3, 12), rng.uniform(-110, 110))
            canvas.paint(point, (rng.uniform(5, 14), 5, rng.uniform(5, 14)), rng.uniform(900, 2500))


def _paint_head(canvas: Canvas) -> None:
    canvas.paint((0, 0, 0), (80, 98, 110), canvas.body.bone_hu)
    canvas.paint((0, 0, 0), (72, 90, 102), 35)


def _paint_medical_material(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """A generator under the skin of the upper chest, with its lead towards the heart."""
    side, rng, body = sides[0], canvas.rng, canvas.body
    x, y, z = side * 0.52 * body.half_width_mm, -0.80 * body.half_depth_mm, rng.uniform(55, 90)
    canvas.paint((x, y, z), (24, 10, 26), rng.uniform(1500, 3000), power=4)
    for step in np.linspace(0, 1, 12):
        point = (x * (1 - step) + 10 * step, y * (1 - step), z * (1 - step))
        canvas.ball(point, 3, 2000)


def _paint_arterial_calcification(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """Plaques along the wall of the descending aorta."""
    x, y, _ = canvas.aorta_mm
    for height in np.arange(-110, 100, 22):
        angle = canvas.rng.uniform(0, 2 * np.pi)
        point = (x + 12 * np.cos(angle), y + 12 * np.sin(angle), height + canvas.rng.uniform(-8, 8))
        canvas.paint(point, (9, 9, 14), canvas.rng.uniform(700, 1200))


def _paint_pericardial_effusion(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """Fluid around the heart, outside its fat."""
    heart, radii, width = canvas.heart_mm, canvas.heart_radii_mm, canvas.rng.uniform(15, 22)
    muscle = canvas.body.muscle_hu
    canvas.paint(heart, tuple(radius + 9 + width for radius in radii), WATER_HU)  # type: ignore[arg-type]
    canvas.paint(heart, tuple(radius + 9 for radius in radii), FAT_HU - 20)  # type: ignore[arg-type]
    canvas.paint(heart, radii, muscle)


def _paint_coronary_calcification(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """Spots along the arteries on the front of the heart."""
    (x, y, z), (a, b, c) = canvas.heart_mm, canvas.heart_radii_mm
    for _ in range(canvas.rng.integers(8, 13)):
        angle, height = canvas.rng.uniform(-2.4, -0.6), canvas.rng.uniform(-0.2, 0.75)
        ring = np.sqrt(1 - height**2)
        point = (x + a * ring * np.cos(angle), y + b * ring * np.sin(angle), z + c * height)
        canvas.paint(point, (9, 9, 12), canvas.rng.uniform(700, 1200))


def _paint_hiatal_hernia(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """A part of the stomach behind the heart, with gas above fluid."""
    radius = canvas.rng.uniform(25, 33)
    x, y, z = canvas.rng.uniform(-12, 4), 0.36 * canvas.body.half_depth_mm, canvas.rng.uniform(-62, -45)
    canvas.ball((x, y, z), radius, canvas.body.muscle_hu)
    canvas.paint((x, y - 3, z + 4), (0.7 * radius, 0.6 * radius, 0.7 * radius), -950)


def _paint_lymphadenopathy(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """Enlarged nodes in the fat of the upper mediastinum, on both sides of the trachea."""
    for side in (-1, 1, -1, 1, -1):
        x, y = side * canvas.rng.uniform(18, 28), canvas.rng.uniform(-30, 8)
        canvas.ball((x, y, canvas.rng.uniform(35, 95)), canvas.rng.uniform(15, 21), canvas.body.muscle_hu)


def _paint_emphysema(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """Bullae in the upper parts of both lungs."""
    for side in (-1, 1):
        for _ in range(8):
            point = canvas.point_in_lung(side, (-0.3, -0.6, 0.25), (0.7, 0.6, 0.85))
            canvas.ball(point, canvas.rng.uniform(20, 32), -1000, only_lung=True)


def _paint_nodules(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """Round masses in the outer parts of the lungs, at middle height."""
    for side in sides:
        for _ in range(canvas.rng.integers(3, 6)):
            point = canvas.point_in_lung(side, (0.2, -0.6, -0.35), (0.7, 0.1, 0.25))
            canvas.ball(point, canvas.rng.uniform(15, 20), canvas.rng.uniform(20, 80), only_lung=True)


def _paint_pleural_effusion(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """Fluid at the back of the base of the lung."""
    for side in sides:
        (x, y, _), radii = canvas.lung(side)
        size = canvas.rng.uniform(0.5, 0.75)
        point = (x + side * 10, y + 0.72 * radii[1], -78)
        canvas.paint(point, (1.5 * radii[0], size * radii[1], 85 * size), WATER_HU, only_lung=True)


def _paint_consolidation(canvas: Canvas, sides: tuple[int, ...]) -> None:
    """A dense part of an upper lobe, with some air left in its bronchi."""
    for side in sides:
        point = canvas.point_in_lung(side, (0.1, -0.5, 0.35), (0.5, 0.2, 0.6))
        radii = tuple(canvas.rng.uniform(24, 36) for _ in range(3))
        canvas.paint(point, radii, canvas.rng.uniform(10, 50), only_lung=True)  # type: ignore[arg-type]
        canvas.paint(point, (5, 5, 20), -800)


# Abnormalities that volumes show, in the order of painting: those within the lungs first.
PAINTERS = {
    "Emphysema": _paint_emphysema,
    "Consolidation": _paint_consolidation,
    "Lung nodule": _paint_nodules,
    "Pleural effusion": _paint_pleural_effusion,
    "Pericardial effusion": _paint_pericardial_effusion,
    "Coronary artery wall calcification": _paint_coronary_calcification,
    "Hiatal hernia": _paint_hiatal_hernia,
    "Lymphadenopathy": _paint_lymphadenopathy,
    "Arterial wall calcification": _paint_arterial_calcification,
    "Medical material": _paint_medical_material,
}


def _expose(hu: NDArray[np.float32], reconstruction: Reconstruction) -> NDArray[np.int16]:
    """Adds the effects of the scanner: the blur of a soft kernel, noise, and the circular field of view."""
    rng = np.random.default_rng(reconstruction.seed)
    if not reconstruction.is_sharp:
        hu[1:-1] = 0.7 * hu[1:-1] + 0.15 * (hu[:-2] + hu[2:])
        hu[:, 1:-1] = 0.7 * hu[:, 1:-1] + 0.15 * (hu[:, :-2] + hu[:, 2:])
    hu += rng.standard_normal(hu.shape, dtype=np.float32) * np.float32(reconstruction.noise_hu)
    volume = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    x, y = (np.linspace(-1, 1, size) for size in volume.shape[:2])
    volume[x[:, None] ** 2 + y**2 > 1] = reconstruction.padding_hu
    return volume
