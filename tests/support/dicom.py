"""DICOM files written from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

PATIENT = {"PatientName": "Doe^Jane", "PatientID": "MRN-12345", "PatientBirthDate": "19700131"}
PRIVATE = ("doe", "jane", "mrn-12345", "19700131", "31011970")  # in lower case
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_series(
    folder: Path,
    hu: np.ndarray,
    spacing_mm: tuple[float, float, float] = (0.7, 0.8, 1.5),
    *,
    description: str = "CHEST 1.5 B60",
    modality: str = "CT",
    image_type: Sequence[str] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    intercept: float = -1024.0,
    orientation: Sequence[float] = AXIAL,
    positions_mm: Sequence[float] | None = None,
    tilt_mm: float = 0.0,
    transfer_syntax: str | None = None,
) -> list[Path]:
    """Writes HU (first axis, second axis, slices) as one file a slice, in an order that is not that of the slices.

    `positions_mm` are the slices' places along their normal. `tilt_mm` moves each next slice along the second axis.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), generate_uid()
    count = hu.shape[2]
    places = positions_mm if positions_mm is not None else [index * spacing_mm[2] for index in range(count)]
    normal = np.cross(orientation[:3], orientation[3:])
    paths = []
    for index in np.random.default_rng(0).permutation(count):
        dataset = _image(CTImageStorage, series, study, modality, image_type, description)
        place = normal * places[index] + np.array(orientation[3:]) * tilt_mm * index
        dataset.ImagePositionPatient = [float(value) for value in place]
        dataset.ImageOrientationPatient = list(orientation)
        dataset.PixelSpacing = [spacing_mm[1], spacing_mm[0]]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, intercept
        dataset.InstanceNumber = int(index) + 1
        _set_pixels(dataset, (hu[:, :, index].T - intercept).astype(np.int16))
        if transfer_syntax is not None:
            dataset.compress(transfer_syntax)
        path = folder / f"IM{len(paths):04d}"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_enhanced(
    path: Path, hu: np.ndarray, spacing_mm: tuple[float, float, float] = (0.7, 0.8, 1.5), intercept: float = -1024.0
) -> None:
    """Writes HU as one enhanced multi-frame file whose frames run downwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = _image(
        EnhancedCTImageStorage, generate_uid(), generate_uid(), "CT", ("ORIGINAL", "PRIMARY", "VOLUME"), "ENHANCED"
    )
    order = list(range(hu.shape[2]))[::-1]
    frames = []
    for index in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, index * spacing_mm[2]]
        frame.PlanePositionSequence = DicomSequence([position])
        frames.append(frame)
    shared, orientation, measures, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing = [spacing_mm[1], spacing_mm[0]]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, intercept, "HU"
    shared.PlaneOrientationSequence = DicomSequence([orientation])
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.PixelValueTransformationSequence = DicomSequence([rescale])
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    dataset.NumberOfFrames = len(frames)
    _set_pixels(dataset, (hu.transpose(2, 1, 0)[order] - intercept).astype(np.int16))
    dataset.save_as(path, enforce_file_format=True)


def _image(
    kind: str, series: str, study: str, modality: str, image_type: Sequence[str], description: str
) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": kind, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "SeriesInstanceUID": series,
        "StudyInstanceUID": study, "FrameOfReferenceUID": study, "Modality": modality, "ImageType": list(image_type),
        "SeriesDescription": description, "SeriesNumber": 4, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", **PATIENT,
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _set_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = np.ascontiguousarray(stored, "<i2").tobytes()
