"""DICOM series of CT: slices sorted by position, rescaled once, read plane by plane as a NIfTI file is.

Needs the extra `dicom` (pydicom, and pylibjpeg for compressed transfer syntaxes). No patient's name or identifier is
read. A series is named by its description.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctclip_model.data.nifti import NiftiHeader
from ctclip_model.data.spacing import affine_lengths
from ctclip_model.errors import ConfigurationError, VolumeError

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE_BYTES = 128
MAGIC = b"DICM"
NOT_A_VOLUME = ("LOCALIZER", "SCOUT", "DOSE_INFO", "REPORT")  # in ImageType
UNEVEN = 0.05  # largest relative difference between two distances of slices
MISSING = 1.5  # times the spacing, from which on a slice is missing
TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "Modality", "ImageType",
    "Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
    "RescaleIntercept", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "SamplesPerPixel",
)  # fmt: skip
FUNCTIONAL_GROUPS = (
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of a series: its file and frame, its place in mm, and its rescaling to HU."""

    path: Path
    frame: int
    position_mm: NDArray[np.float64]  # (3,) of the first voxel, towards left, posterior, superior
    orientation: NDArray[np.float64]  # (2, 3): directions of a growing column and of a growing row
    spacing_mm: tuple[float, float]  # between rows, between columns
    shape: tuple[int, int]  # rows, columns
    slope: float
    intercept: float
    instance: str


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A CT series: its name, its slices from the first to the last along their normal, and what is doubtful."""

    name: str
    folder: Path
    slices: tuple[Slice, ...]
    doubts: tuple[str, ...]

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4), indices of column, row and slice to mm towards right, anterior, superior."""
        first, last = self.slices[0], self.slices[-1]
        affine = np.eye(4)
        affine[:3, 0] = first.orientation[0] * first.spacing_mm[1]
        affine[:3, 1] = first.orientation[1] * first.spacing_mm[0]
        affine[:3, 2] = (last.position_mm - first.position_mm) / (len(self.slices) - 1)
        affine[:3, 3] = first.position_mm
        affine[:2] *= -1  # DICOM's axes run to left and posterior
        return affine


def has_dicom(folder: Path) -> bool:
    """Says whether a file somewhere below the folder is DICOM."""
    return any(True for _ in _dicom_files(folder))


def is_dicom(path: Path) -> bool:
    """Says whether a file has DICOM's magic bytes."""
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE_BYTES + len(MAGIC))[PREAMBLE_BYTES:] == MAGIC
    except OSError:
        return False


def list_series(folder: Path) -> list[DicomSeries | VolumeError]:
    """The CT series of a folder, each sorted along its slices' normal, or the reason why one is refused.

    Localizers, dose reports and other modalities are refused by name. Raises `ConfigurationError` without pydicom.
    """
    pydicom = _import_pydicom()
    groups: dict[str, list[tuple[Path, Dataset]]] = {}
    for path in _dicom_files(folder):
        with _quiet():
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        groups.setdefault(str(dataset.get("SeriesInstanceUID", path.parent)), []).append((path, dataset))
    found: list[DicomSeries | VolumeError] = []
    for files in groups.values():
        try:
            found.append(_make_series(folder, files))
        except VolumeError as error:
            found.append(error)
    return _with_distinct_names(found)


class DicomStream:
    """An open series, read plane by plane in the order of its slices. Values are HU already."""

    def __init__(self, series: DicomSeries) -> None:
        self.path, self.series = series.folder / series.name, series
        self._planes = self._decode()
        slices = series.slices
        rows, columns = slices[0].shape
        is_whole = all(part.slope % 1 == part.intercept % 1 == 0 for part in slices)
        affine = series.affine
        lengths = affine_lengths(affine)
        self.header = NiftiHeader(
            shape=(columns, rows, len(slices)),
            pixdim=(lengths[0], lengths[1], lengths[2]),
            dtype=np.dtype(np.int32 if is_whole else np.float32),
            slope=1.0,
            intercept=0.0,
            data_offset=0,
            affine=affine,
        )

    def __enter__(self) -> DicomStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._planes.close()  # type: ignore[attr-defined]

    def read_plane(self, out: NDArray) -> None:
        """Fills `out` (rows, columns) with the next slice in HU."""
        out[:] = next(self._planes)

    def finish(self) -> None:
        """Nothing is left to check: each slice is a file of its own."""

    def _decode(self) -> Iterator[NDArray]:
        """Each slice's HU. A file of many frames is opened once for a run of its frames."""
        pydicom = _import_pydicom()
        opened: tuple[Path, Any] | None = None
        for part in self.series.slices:
            try:
                with _quiet():
                    if opened is None or opened[0] != part.path:
                        opened = part.path, pydicom.dcmread(part.path)
                    is_multi_frame = int(opened[1].get("NumberOfFrames", 1) or 1) > 1
                    plane = pydicom.pixels.pixel_array(opened[1], index=part.frame if is_multi_frame else None)
            except Exception as error:  # pydicom and its decoders raise what they like
                raise _fault(self.series.name, "bad_dicom", f"{part.path.name} cannot be decoded: {error}") from error
            if plane.shape != part.shape:
                raise _fault(self.series.name, "bad_dicom", f"{part.path.name} holds {plane.shape}, not {part.shape}")
            yield plane.astype(self.header.dtype) * self.header.dtype.type(part.slope) + self.header.dtype.type(
                part.intercept
            )


def _make_series(folder: Path, files: Sequence[tuple[Path, Dataset]]) -> DicomSeries:
    first = files[0][1]
    name = _describe(first)
    modality = str(first.get("Modality", "?"))
    if modality != "CT":
        raise _fault(name, "not_ct", f"is of modality {modality}, not CT")
    kinds = {str(kind).strip() for _, dataset in files for kind in dataset.get("ImageType", []) or []}
    if unwanted := sorted(kinds & set(NOT_A_VOLUME)):
        raise _fault(name, "not_a_volume", f"is a {unwanted[0].lower()}, not a volume")
    slices = [part for path, dataset in files for part in _read_slices(name, path, dataset)]
    doubts: list[str] = []
    kept = list({part.instance: part for part in slices}.values())
    if len(kept) < len(slices):
        doubts.append(f"slices in doubt: {len(slices) - len(kept)} are there twice, and one of each is used")
    return _sort(name, folder, kept, doubts)


def _read_slices(name: str, path: Path, dataset: Dataset) -> Iterator[Slice]:
    """The slices of a file: one, or each frame of an enhanced multi-frame file."""
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1:
        raise _fault(name, "not_ct", f"{path.name} holds colours")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    try:
        if frames is None:
            if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
                raise ValueError("holds several frames without the place of each")
            yield _slice(path, 0, dataset, dataset, dataset, dataset, dataset, str(dataset.SOPInstanceUID))
            return
        for index, frame in enumerate(frames):
            position, orientation, measures, rescale = (_group(frame, shared, key) for key in FUNCTIONAL_GROUPS)
            instance = f"{dataset.SOPInstanceUID}/{index}"
            yield _slice(path, index, dataset, position, orientation, measures, rescale, instance)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise _fault(name, "bad_dicom", f"{path.name}: {error}") from error


def _group(frame: Dataset, shared: Dataset | None, keyword: str) -> Dataset:
    """A functional group of a frame, its own or the one that all frames share."""
    for holder in (frame, shared):
        if holder is not None and keyword in holder:
            return holder[keyword][0]
    raise ValueError(f"a frame has no {keyword}")


def _slice(
    path: Path,
    index: int,
    image: Dataset,
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    rescale: Dataset,
    instance: str,
) -> Slice:
    directions = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
    rows_mm, columns_mm = (float(value) for value in measures.PixelSpacing)
    return Slice(
        path, index, np.array(position.ImagePositionPatient, float), directions, (rows_mm, columns_mm),
        (int(image.Rows), int(image.Columns)), float(rescale.RescaleSlope), float(rescale.RescaleIntercept), instance,
    )  # fmt: skip


def _sort(name: str, folder: Path, slices: list[Slice], doubts: list[str]) -> DicomSeries:
    """Orders slices along their normal. Refuses missing, doubled and unevenly spaced ones by where they are."""
    first = slices[0]
    for part in slices[1:]:
        if part.shape != first.shape or not np.allclose(part.spacing_mm, first.spacing_mm, rtol=1e-4):
            raise _fault(name, "mixed_series", "its slices differ in size or in spacing")
        if not np.allclose(part.orientation, first.orientation, atol=1e-3):
            raise _fault(name, "mixed_series", "its slices have several orientations")
    if len(slices) < 2:
        raise _fault(name, "too_few_slices", "has 1 slice")
    normal = np.cross(*first.orientation)
    ordered = sorted(slices, key=lambda part: float(part.position_mm @ normal))
    heights = np.array([part.position_mm @ normal for part in ordered])
    steps = np.diff(heights)
    spacing = float(np.median(steps))
    if (steps < 0.01).any():
        index = int(np.argmin(steps))
        raise _fault(name, "doubled_slices", f"two slices lie at {heights[index]:.4g} mm along their normal")
    if (steps > MISSING * spacing).any():
        index = int(np.argmax(steps))
        raise _fault(
            name, "missing_slices",
            f"{round(steps[index] / spacing) - 1} or more slices are missing between {heights[index]:.4g} and "
            f"{heights[index + 1]:.4g} mm: the others are {spacing:.4g} mm apart",
        )  # fmt: skip
    if (np.abs(steps - spacing) > UNEVEN * spacing).any():
        raise _fault(
            name, "uneven_slices", f"its slices are {steps.min():.4g} to {steps.max():.4g} mm apart, not evenly"
        )
    return DicomSeries(name, folder, tuple(ordered), tuple(doubts))


def _describe(dataset: Dataset) -> str:
    """Name of a series: its description, or its number."""
    description = " ".join(str(dataset.get("SeriesDescription", "") or "").split()).replace("/", "-")
    return description or f"series {dataset.get('SeriesNumber', '?')}"


def _with_distinct_names(found: list[DicomSeries | VolumeError]) -> list[DicomSeries | VolumeError]:
    """Numbers series of the same description."""
    seen: dict[str, int] = {}
    named: list[DicomSeries | VolumeError] = []
    for series in found:
        if isinstance(series, DicomSeries):
            seen[series.name] = count = seen.get(series.name, 0) + 1
            if count > 1:
                series = DicomSeries(f"{series.name} ({count})", series.folder, series.slices, series.doubts)
        named.append(series)
    return named


def _dicom_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if path.is_file() and path.name.upper() != "DICOMDIR" and is_dicom(path):
            yield path


def _fault(name: str, reason: str, detail: str) -> VolumeError:
    return VolumeError(name, reason, detail)


def _import_pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise ConfigurationError("reading DICOM needs the extra: pip install 'ctclip-rebuild[dicom]'") from error
    return pydicom


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences pydicom, whose warnings quote the values of elements, names of patients among them."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
