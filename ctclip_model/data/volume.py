"""CT volumes from a file to the model's input: the published inference preprocessing, in little memory.

HU are clipped, resampled trilinearly with half-pixel centres, and cut or padded around the centre. The file is read
once, plane by plane, and no more than two of its planes are held.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctclip_model.config import Recipe
from ctclip_model.data.dicom import DicomSeries, DicomStream
from ctclip_model.data.hounsfield import HounsfieldPlanes, clip_plane
from ctclip_model.data.names import HEADER, STORED
from ctclip_model.data.nifti import NiftiStream, fault
from ctclip_model.data.npz import NpzStream
from ctclip_model.data.npz_axes import ORIENTATION
from ctclip_model.data.orientation import LPS, Orientation, Turn, orientation_of, turn_to_lps
from ctclip_model.data.resampling import Axis, blend_planes, plan_axes
from ctclip_model.data.slabs import encode_slab
from ctclip_model.data.spacing import Spacing, by, decide_spacing
from ctclip_model.data.streams import PlaneStream, TurnedStream
from ctclip_model.data.value_check import ValueFault

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PUBLISHED = Recipe()
LEAST_SLICES = 20  # slices of a chest; fewer are doubted
EXTENT_MM = (100.0, 2500.0)  # along the body
PLANE_MM = (50.0, 1500.0)  # sides of the field of view
LEAST_SQUARE = 0.8  # shorter side of a pixel, relative to the longer one
MISSING_SHARE = 0.03  # share of the slices that may be missing or blank

Source = str | PathLike[str] | DicomSeries
StatedShape = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class ConvertedVolume:
    """A volume in HU, resampled and windowed.

    `spacing_mm` and `shape_in` are in the source's axis order. Voxels outside `window`, (start, stop) along depth,
    height, width, are padding. `hu_min` and `hu_max` are the source's before clipping, `hu_mean` and `hu_std` after it.
    `spacing_note` describes a disagreement between table and header. HU = `rescale_slope` x stored value +
    `rescale_intercept`. `header_orientation` is the header's code. Blank slices hold one value alone, repeated
    ones equal the slice before. `turned_from` is the code that the array was turned to LPS from. `doubts` are warnings
    for a person.
    """

    voxels: np.ndarray  # HU (depth, height, width), int16 as shards keep them, or float32
    shape_in: tuple[int, int, int]
    spacing_mm: Spacing
    window: tuple[tuple[int, int], ...]
    hu_mean: float
    hu_std: float
    hu_min: int
    hu_max: int
    spacing_note: str | None = None
    rescale_slope: float = 1.0
    rescale_intercept: float = 0.0
    header_orientation: str | None = None
    count_blank_slices: int = 0
    count_repeated_slices: int = 0
    turned_from: str | None = None
    doubts: tuple[str, ...] = ()

    @property
    def count_slices(self) -> int:
        return self.shape_in[turn_to_lps(self.turned_from or STORED).axes[2]]

    @property
    def turn(self) -> str:
        """The turn in words: `RAS → LPS`, or `as stored`."""
        return "as stored" if self.turned_from is None else f"{self.turned_from} → {LPS}"

    def to_input(self) -> torch.Tensor:
        """The model's input, float32 (1, depth, height, width) in [-1, 1]. Scales float voxels in place."""
        import torch  # workers of the conversion start faster without it

        return torch.from_numpy(self.voxels).float().div_(1000).unsqueeze(0)


def load_volume(
    path: Source,
    *,
    spacing_mm: Sequence[float | None] | None = None,
    slope: float | None = 1.0,
    intercept: float | None = 0.0,
    recipe: Recipe = PUBLISHED,
    orientation: str = HEADER,
) -> torch.Tensor:
    """Reads a CT volume as the model's input, float32 (1, depth, height, width) in [-1, 1].

    The published inference preprocessing (arXiv:2403.17834): HU are clipped to the recipe's window, resampled to its
    spacing, cut or padded to its shape around the centre, and divided by 1,000.

    `path` is a NIfTI file or a DICOM series (`dicom.list_series`). `spacing_mm` is the spacing along the first, second
    and third array axis. Default: the header's. HU are `slope` x value + `intercept`. CT-RATE's v2 files hold HU
    already. A spacing or rescaling of None counts as missing.

    The model knows LPS arrays alone. `orientation` says how the array lies: `header` believes the header's affine, a
    code such as `RAS` overrides it, `stored` takes the array as it lies. Flips and permutations turn it, exactly.

    Raises `VolumeError` for a file that is missing, damaged, or no CT volume. Doubts are logged as warnings.

    >>> from ctclip_model import load_volume
    >>> volume = load_volume("scan.nii.gz")
    >>> tuple(volume.shape), volume.dtype
    ((1, 240, 480, 480), torch.float32)
    """
    volume = read_volume(
        path, spacing_mm=spacing_mm, slope=slope, intercept=intercept, recipe=recipe, orientation=orientation
    )
    for doubt in volume.doubts:
        logger.warning("%s: %s", path.name if isinstance(path, DicomSeries) else path, doubt)
    return volume.to_input()


def read_volume(
    path: Source,
    *,
    spacing_mm: Sequence[float | None] | None = None,
    slope: float | None = 1.0,
    intercept: float | None = 0.0,
    recipe: Recipe = PUBLISHED,
    orientation: str = HEADER,
) -> ConvertedVolume:
    """Reads a volume as `load_volume` does, in float32 HU, with the facts of its source and its doubts.

    Values that are not HU are a doubt here, and a reject of `convert_volume`.
    """
    with DicomStream(path) if isinstance(path, DicomSeries) else NiftiStream(Path(path)) as stream:
        volume, fault_of_values = _convert(stream, spacing_mm, slope, intercept, recipe, np.float32, orientation)
        return replace(volume, doubts=(*_list_doubts(stream, volume, orientation, fault_of_values),))


def convert_volume(
    path: str | PathLike[str],
    *,
    spacing_mm: Sequence[float | None] | None = None,
    slope: float | None = 1.0,
    intercept: float | None = 0.0,
    recipe: Recipe = PUBLISHED,
    orientation: str = ORIENTATION,
    stated_shape: StatedShape = (None, None, None),
) -> ConvertedVolume:
    """Reads a volume as `load_volume` does, rounded to the int16 HU of shards, with the facts of its source.

    A `.npz` is a volume of RAD-ChestCT, with axes in `orientation` (see `npz.py`). A NIfTI is taken as it lies, as the
    published pipeline does, or turned as `load_volume` turns it. `stated_shape` is the table's number of columns, rows
    and slices, which the file's is compared with. Shape and spacing of the table are those of the turned array. Raises
    `VolumeError`, whose `reason` is the reject's code, also for values that are not HU.
    """
    path = Path(path)
    is_npz = path.suffix.lower() == ".npz"
    turned = STORED if is_npz or orientation == ORIENTATION else orientation
    with NpzStream(path, orientation) if is_npz else NiftiStream(path) as stream:
        turn = turn_to_lps(_find_code(stream, turned)[0])
        _check_shape(path, stream.header.shape, turn.restore(stated_shape))
        spacing_mm = None if spacing_mm is None else turn.restore(spacing_mm)
        volume, wrong = _convert(stream, spacing_mm, slope, intercept, recipe, np.int16, turned)
        if wrong is not None:
            raise fault(path, wrong.reason, wrong.evidence)
        if volume.count_blank_slices > MISSING_SHARE * volume.count_slices:
            raise fault(path, "missing_slices", _describe_slices(volume))
        return volume


def compile_kernels() -> None:
    """Compiles the loops of the conversion once on this machine, so that workers load them instead."""
    plane = np.zeros((2, 2), np.int16)
    first, second, _ = plan_axes((2, 2, 2), (1.0, 1.0, 1.0), Recipe(spacing_mm=(1.0, 1.0, 1.0), shape=(2, 2, 2)))
    hu = np.empty((2, 2, 2), np.int16)
    clip_plane(plane, 1.0, 0.0, PUBLISHED.window_hu, hu[0])
    blend_planes(hu[0], hu[0], np.float32(0), first, second, plane)
    encode_slab(plane[None], "delta-zstd")


def _convert(
    stream: PlaneStream,
    spacing_mm: Sequence[float | None] | None,
    slope: float | None,
    intercept: float | None,
    recipe: Recipe,
    dtype: type[np.float32] | type[np.int16],
    orientation: str,
) -> tuple[ConvertedVolume, ValueFault | None]:
    """Reads a stream to its end: spacing, axes and rescaling first, then voxels, then the judgement of the values."""
    shape = stream.header.shape
    try:
        spacing = decide_spacing(spacing_mm, stream.header.spacing)
    except ValueError as error:
        raise fault(stream.path, "bad_spacing", str(error)) from error
    code, by_header = _find_code(stream, orientation)
    turn = turn_to_lps(code)
    first, second, third = turn.axes
    try:
        height, width, depth = plan_axes(
            (shape[first], shape[second], shape[third]),
            (spacing.mm[first], spacing.mm[second], spacing.mm[third]),
            recipe,
        )
    except ValueError as error:
        raise fault(stream.path, "too_few_slices", str(error)) from error
    turned = stream if turn == Turn() else TurnedStream(stream, turn)
    planes = HounsfieldPlanes(turned, slope, intercept, recipe.window_hu)
    voxels = _resample(
        planes, depth.reversed(planes.count) if turn.flips[2] else depth, height, width, np.empty(recipe.shape, dtype)
    )
    turned.finish()
    statistics = planes.statistics()
    window = tuple((axis.start, axis.stop) for axis in (depth, height, width))
    volume = ConvertedVolume(
        voxels, shape, spacing.mm, window, *statistics, spacing.note, rescale_slope=planes.slope,
        rescale_intercept=planes.intercept, header_orientation=by_header.code if by_header else None,
        count_blank_slices=planes.count_blank, count_repeated_slices=planes.count_repeated,
        turned_from=None if turn == Turn() else code,
    )  # fmt: skip
    return volume, planes.judge()


def _find_code(stream: PlaneStream, orientation: str) -> tuple[str, Orientation | None]:
    """The code of the array's axes that `orientation` leads to, and the orientation that the header gives."""
    by_header = None if stream.header.affine is None else orientation_of(stream.header.affine)
    if orientation != HEADER:
        return orientation, by_header
    return by_header.code if by_header else STORED, by_header


def _check_shape(path: Path, shape: tuple[int, int, int], stated: StatedShape) -> None:
    """Raises `VolumeError` for axes in another order than the table's columns, rows and slices, and missing slices."""
    sizes = " x ".join(map(str, shape))
    columns, rows, slices = stated
    if columns and rows and slices:
        plane = sorted((columns, rows))
        is_turned = sorted(shape) == sorted((columns, rows, slices)) and shape != stated
        is_across = sorted(shape[:2]) != plane and plane in (sorted(shape[1:]), sorted(shape[::2]))
        if is_turned or is_across:
            raise fault(path, "wrong_axes", f"has shape {sizes}, and the table {' x '.join(map(str, stated))}")
    if slices is not None and shape[2] < (1 - MISSING_SHARE) * slices:
        raise fault(path, "missing_slices", f"holds {shape[2]} slices of {slices} in the table (shape {sizes})")


def _resample(planes: HounsfieldPlanes, depth: Axis, height: Axis, width: Axis, out: np.ndarray) -> np.ndarray:
    """Fills `out` (depth, height, width) from all planes of the source.

    Plane z of the window is planes[lower[z]] + weight[z] (planes[upper[z]] - planes[lower[z]]). `upper` and `lower` are
    one plane or two neighbours, and both rise with z, or both fall: the two planes read last are enough. Plane i is
    kept in pair[i % 2].
    """
    if any((axis.start, axis.stop) != (0, size) for axis, size in zip((depth, height, width), out.shape, strict=True)):
        out.fill(planes.window_hu[0])
    pair = np.empty((2, *planes.shape), planes.dtype)
    last = np.maximum(depth.lower, depth.upper)  # the plane that must have been read
    rising = range(len(last)) if last[0] <= last[-1] else range(len(last) - 1, -1, -1)
    for index in rising:
        lower, upper = depth.lower[index], depth.upper[index]
        while planes.position <= last[index]:
            planes.read(pair[planes.position % 2])
        blend_planes(pair[lower % 2], pair[upper % 2], depth.weight[index], height, width, out[depth.start + index])
    while planes.position < planes.count:  # the rest, for the statistics and the checksum
        planes.read(pair[0])
    return out


def _list_doubts(
    stream: PlaneStream, volume: ConvertedVolume, orientation: str, wrong: ValueFault | None
) -> Iterator[str]:
    """Warnings about a volume that is read without metadata: spacing, axes, extent, values. They never stop a run."""
    if volume.spacing_note:
        yield volume.spacing_note
    if orientation == HEADER:
        by_header = None if stream.header.affine is None else orientation_of(stream.header.affine)
        if by_header is None:
            yield "orientation in doubt: the header states none, so the array is taken as it lies"
        else:
            yield from by_header.list_doubts()
            other = None if stream.header.other_affine is None else orientation_of(stream.header.other_affine)
            if other is not None and other.code != by_header.code:
                yield (
                    f"orientation in doubt: the header's sform says {by_header.code} and its qform {other.code}, and "
                    "the sform is used"
                )
    yield from _doubt_extent(volume)
    if volume.count_blank_slices or volume.count_repeated_slices:
        yield f"slices in doubt: {_describe_slices(volume)}"
    if wrong is not None:
        yield f"values in doubt: {wrong.evidence}"


def _doubt_extent(volume: ConvertedVolume) -> Iterator[str]:
    """Warnings about a volume that is smaller or larger than a body, as with a spacing in another unit."""
    across, down, along = turn_to_lps(volume.turned_from or STORED).axes
    sides = [volume.spacing_mm[axis] for axis in (across, down)]
    extent_mm = [volume.shape_in[axis] * volume.spacing_mm[axis] for axis in (across, down, along)]
    slices = volume.count_slices
    if slices < LEAST_SLICES or extent_mm[2] < EXTENT_MM[0]:
        yield f"extent in doubt: {slices} slices cover {extent_mm[2]:.4g} mm, and a chest covers 250 mm or more"
    if extent_mm[2] > EXTENT_MM[1]:
        yield f"extent in doubt: {slices} slices cover {extent_mm[2]:.4g} mm, more than a body"
    if not all(PLANE_MM[0] <= side <= PLANE_MM[1] for side in extent_mm[:2]):
        yield f"extent in doubt: slices of {by(extent_mm[:2])} mm, and those of a CT have sides of 200 to 800 mm"
    if min(sides) < LEAST_SQUARE * max(sides):
        yield f"spacing in doubt: pixels of {by(sides)} mm, and those of a CT are square"


def _describe_slices(volume: ConvertedVolume) -> str:
    parts = [
        (volume.count_blank_slices, "hold one value alone"),
        (volume.count_repeated_slices, "repeat the one before"),
    ]
    return f"of {volume.count_slices} slices " + " and ".join(f"{count} {what}" for count, what in parts if count)
