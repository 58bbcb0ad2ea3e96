"""DICOM series of CT: slices sorted by position, rescaled once, read plane by plane as a NIfTI file is.

Needs the extra `dicom` (pydicom, and pylibjpeg for compressed transfer syntaxes). A series is named by its description.
No patient's name or identifier is in a name or a message (`dicom_identity.py`).
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctclip_model.data.dicom_identity import ELEMENTS, list_ids, mentions, read_identity
from ctclip_model.data.nifti import NiftiHeader
from ctclip_model.data.spacing import affine_lengths
from ctclip_model.errors import ConfigurationError, VolumeError

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE_BYTES = 128
MAGIC = b"DICM"
FIRST_GROUPS, FIRST_ELEMENTS = (
    (0x0002, 0x0008),
    (0x0000, 0x0001, 0x0005, 0x0008, 0x0016),
)  # a file without a preamble begins so
LONGEST_ELEMENT = 64  # bytes of a first element
NOT_HU = {"OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"}  # rescale types, such as those of dual energy
NOT_A_VOLUME = ("LOCALIZER", "SCOUT", "DOSE_INFO", "REPORT")  # in ImageType
UNEVEN = 0.05  # largest relative difference between two distances of slices
MISSING = 1.5  # times the spacing, from which on a slice is missing
TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "Modality", "ImageType",
    "Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
    "RescaleIntercept", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "SamplesPerPixel", "RescaleType", *ELEMENTS,
)  # fmt: skip
FUNCTIONAL_GROUPS = (
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of a series: its file and frame, its place in mm, and its rescaling to HU."""

    path: Path
    file: str  # name of the file for a message
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
    ids: Mapping[str, str] = field(default_factory=dict)  # identifiers by keyword, where they were asked for
    identity: frozenset[str] = field(default=frozenset(), repr=False)  # parts of names that no message may hold

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
    """Says whether a file has DICOM's magic bytes, or begins with a first element of DICOM without them."""
    try:
        with path.open("rb") as file:
            head = file.read(PREAMBLE_BYTES + len(MAGIC))
    except OSError:
        return False
    return head[PREAMBLE_BYTES:] == MAGIC or _begins_with_element(head)


def list_series(folder: Path, *, with_ids: bool = False) -> list[DicomSeries | VolumeError]:
    """The CT series of a folder, each sorted along its slices' normal, or the reason why one is refused.

    Localizers, dose reports and other modalities are refused by name. `with_ids` keeps the patient's name and
    identifiers in each series' `ids`. Raises `ConfigurationError` without pydicom.
    """
    pydicom = _import_pydicom()
    groups: dict[str, list[tuple[Path, Dataset]]] = {}
    found: list[DicomSeries | VolumeError] = []
    for number, path in enumerate(_dicom_files(folder), 1):
        try:
            with _quiet():
                dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(TAGS))
                uid = str(dataset.get("SeriesInstanceUID", path.parent))
        except Exception as error:  # noqa: BLE001  pydicom raises what it likes
            found.append(_fault(f"file {number}", "bad_dicom", f"cannot be read as DICOM ({type(error).__name__})"))
            continue
        groups.setdefault(uid, []).append((path, dataset))
    for files in groups.values():
        try:
            series = _make_series(folder, files)
        except VolumeError as error:
            found.append(error)
        else:
            found.append(replace(series, ids=list_ids(files[0][1])) if with_ids else series)
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
                        opened = part.path, _read_whole(part.path)
                    is_multi_frame = int(opened[1].get("NumberOfFrames", 1) or 1) > 1
                    plane = pydicom.pixels.pixel_array(opened[1], index=part.frame if is_multi_frame else None)
            except Exception as error:  # noqa: BLE001  pydicom and its decoders raise what they like
                reason = _explain(error, self.series.identity)
                raise _fault(self.series.name, "bad_dicom", f"{part.file} cannot be decoded: {reason}") from None
            if plane.shape != part.shape:
                raise _fault(self.series.name, "bad_dicom", f"{part.file} holds {plane.shape}, not {part.shape}")
            yield plane.astype(self.header.dtype) * self.header.dtype.type(part.slope) + self.header.dtype.type(
                part.intercept
            )


def _make_series(folder: Path, files: Sequence[tuple[Path, Dataset]]) -> DicomSeries:
    first = files[0][1]
    identity = read_identity(dataset for _, dataset in files)
    name = _describe(first, identity)
    modality = str(first.get("Modality", "?"))
    if modality != "CT":
        raise _fault(name, "not_ct", f"is of modality {modality}, not CT")
    kinds = {str(kind).strip() for _, dataset in files for kind in dataset.get("ImageType", []) or []}
    if unwanted := sorted(kinds & set(NOT_A_VOLUME)):
        raise _fault(name, "not_a_volume", f"is a {unwanted[0].lower()}, not a volume")
    slices: list[Slice] = []
    for number, (path, dataset) in enumerate(files, 1):
        file = f"file {number}" if mentions(path.name, identity) else path.name
        try:
            slices += _read_slices(path, file, dataset)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise _fault(name, "bad_dicom", f"{file}: {_explain(error, identity)}") from None
    doubts: list[str] = []
    kept = list({part.instance: part for part in slices}.values())
    if len(kept) < len(slices):
        doubts.append(f"slices in doubt: {len(slices) - len(kept)} are there twice, and one of each is used")
    return replace(_sort(name, folder, kept, doubts), identity=identity)


def _read_slices(path: Path, file: str, dataset: Dataset) -> Iterator[Slice]:
    """The slices of a file: one, or each frame of an enhanced multi-frame file."""
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1:
        raise ValueError("holds colours")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
            raise ValueError("holds several frames without the place of each")
        yield _slice(path, file, 0, dataset, (dataset,) * 4, str(dataset.SOPInstanceUID))
        return
    for index, frame in enumerate(frames):
        groups = [_group(frame, shared, keyword) for keyword in FUNCTIONAL_GROUPS]
        yield _slice(path, file, index, dataset, groups, f"{dataset.SOPInstanceUID}/{index}")


def _explain(error: Exception, identity: frozenset[str]) -> str:
    """The cause in words, without a person's name."""
    if isinstance(error, AttributeError) and error.name:
        return f"has no {error.name}"
    text = " ".join(str(error).split())
    return type(error).__name__ if mentions(text, identity) else text


def _group(frame: Dataset, shared: Dataset | None, keyword: str) -> Dataset:
    """A functional group of a frame, its own or the one that all frames share."""
    for holder in (frame, shared):
        if holder is not None and keyword in holder:
            return holder[keyword][0]
    raise ValueError(f"a frame has no {keyword}")


def _slice(path: Path, file: str, index: int, image: Dataset, groups: Sequence[Dataset], instance: str) -> Slice:
    """A slice from its image and from the holders of its position, orientation, measures and rescaling."""
    position, orientation, measures, rescale = groups
    directions = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
    rows_mm, columns_mm = (float(value) for value in measures.PixelSpacing)
    if (kind := str(rescale.get("RescaleType", "") or "").upper()) in NOT_HU:
        raise ValueError(f"holds {kind}, not HU")
    return Slice(
        path, file, index, np.array(position.ImagePositionPatient, float), directions, (rows_mm, columns_mm),
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


def _describe(dataset: Dataset, identity: frozenset[str]) -> str:
    """Name of a series: its description, or its number where that is blank or mentions a person."""
    description = " ".join(str(dataset.get("SeriesDescription", "") or "").split()).replace("/", "-")
    if description and not mentions(description, identity):
        return description
    return f"series {dataset.get('SeriesNumber') or '?'}"


def _with_distinct_names(found: list[DicomSeries | VolumeError]) -> list[DicomSeries | VolumeError]:
    """Numbers series of the same description."""
    seen: dict[str, int] = {}
    named: list[DicomSeries | VolumeError] = []
    for series in found:
        if isinstance(series, DicomSeries):
            seen[series.name] = count = seen.get(series.name, 0) + 1
            if count > 1:
                series = replace(series, name=f"{series.name} ({count})")
        named.append(series)
    return named


def _begins_with_element(head: bytes) -> bool:
    """Says whether bytes begin with one of the elements that come first, with a type of value or a small length."""
    if len(head) < 8:
        return False
    group, element, length = struct.unpack_from("<HHI", head)
    has_type = head[4:6].isalpha() and head[4:6].isupper()
    return group in FIRST_GROUPS and element in FIRST_ELEMENTS and (has_type or 0 < length <= LONGEST_ELEMENT)


def _read_whole(path: Path) -> Dataset:
    """A file with its pixels. One without a file header has the transfer syntax that its elements are written in."""
    pydicom = _import_pydicom()
    dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, _ = dataset.original_encoding
        uid = pydicom.uid.ImplicitVRLittleEndian if is_implicit else pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = uid
    return dataset


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
