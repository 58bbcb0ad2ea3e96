"""DICOM series: sorted, rescaled once, equal to the voxels that they were written from, refused by name."""

from __future__ import annotations

import shutil
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from support.dicom import write_enhanced, write_series

from ctclip_model.data.dicom import DicomSeries, DicomStream, is_dicom, list_series
from ctclip_model.data.dicom_identity import mentions, read_identity
from ctclip_model.data.orientation import orientation_of
from ctclip_model.errors import VolumeError

HU = np.random.default_rng(0).integers(-1024, 2000, (36, 40, 9)).astype(np.int16)


def read(series: DicomSeries) -> np.ndarray:
    """All slices (first axis, second axis, slices)."""
    with DicomStream(series) as stream:
        columns, rows, count = stream.header.shape
        planes = np.empty((count, rows, columns), stream.header.dtype)
        for plane in planes:
            stream.read_plane(plane)
        stream.finish()
    return planes.transpose(2, 1, 0)


def only(folder: Path) -> DicomSeries:
    (series,) = list_series(folder)
    assert isinstance(series, DicomSeries), series
    return series


def refusal(folder: Path) -> VolumeError:
    (error,) = list_series(folder)
    assert isinstance(error, VolumeError)
    return error


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_a_series_is_the_voxels_that_it_was_written_from(tmp_path, syntax):
    write_series(tmp_path, HU, transfer_syntax=syntax)
    series = only(tmp_path)
    assert np.array_equal(read(series), HU)
    with DicomStream(series) as stream:
        assert stream.header.pixdim == (0.7, 0.8, 1.5)
        assert stream.header.affine is not None
        orientation = orientation_of(stream.header.affine)
    assert orientation is not None
    assert orientation.code == "LPS"


def test_an_enhanced_file_of_many_frames_is_a_series_too(tmp_path):
    write_enhanced(tmp_path / "a.dcm", HU)
    assert np.array_equal(read(only(tmp_path)), HU)


def test_another_orientation_is_in_the_affine(tmp_path):
    write_series(tmp_path, HU, orientation=(0, 1, 0, 0, 0, -1))  # sagittal
    series = only(tmp_path)
    orientation = orientation_of(series.affine)
    assert orientation is not None
    assert orientation.code == "PIR"


def test_several_series_of_a_folder_are_named_by_their_descriptions(tmp_path):
    write_series(tmp_path / "a", HU, description="LUNG")
    write_series(tmp_path / "b", HU + 1, description="LUNG")
    write_series(tmp_path / "c", HU, description="SCOUT 1", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    (tmp_path / "notes.txt").write_text("no DICOM")
    found = list_series(tmp_path)
    assert [series.name for series in found if isinstance(series, DicomSeries)] == ["LUNG", "LUNG (2)"]
    (error,) = (series for series in found if isinstance(series, VolumeError))
    assert "SCOUT 1" in str(error)
    assert "localizer" in str(error)


def places(*drop: int) -> list[float]:
    return [1.5 * index for index in range(HU.shape[2] + len(drop)) if index not in drop]


@pytest.mark.parametrize(
    ("options", "reason", "words"),
    [
        ({"modality": "MR"}, "not_ct", "MR"),
        ({"positions_mm": places(4, 5)}, "missing_slices", "2 or more slices are missing between 4.5 and 9 mm"),
        ({"positions_mm": [0.0, 0.0, *places()[2:]]}, "doubled_slices", "at 0 mm"),
        ({"positions_mm": [0, 1.5, 3.2, *places()[3:]]}, "uneven_slices", "1.3 to 1.7 mm"),
    ],
)
def test_what_is_no_volume_is_refused_by_name(tmp_path, options, reason, words):
    write_series(tmp_path, HU, **options)
    error = refusal(tmp_path)
    assert error.reason == reason
    assert words in str(error)
    assert "CHEST 1.5 B60" in str(error)


def test_a_file_that_is_there_twice_counts_once(tmp_path):
    paths = write_series(tmp_path, HU)
    shutil.copy(paths[0], tmp_path / "copy")
    series = only(tmp_path)
    assert np.array_equal(read(series), HU)
    assert series.doubts == ("slices in doubt: 1 are there twice, and one of each is used",)


def test_a_tilted_gantry_shows_in_the_affine(tmp_path):
    write_series(tmp_path, HU, tilt_mm=0.5)
    orientation = orientation_of(only(tmp_path).affine)
    assert orientation is not None
    assert orientation.shear_degrees == pytest.approx(np.degrees(np.arctan(0.5 / 1.5)), abs=0.1)


def test_a_damaged_slice_is_refused(tmp_path):
    path = write_series(tmp_path, HU)[3]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(VolumeError, match="cannot be decoded"):
        read(only(tmp_path))


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_a_single_slice_of_another_tool_is_refused_as_too_few(tmp_path, name):
    shutil.copy(str(get_testdata_file(name)), tmp_path / name)
    assert refusal(tmp_path).reason == "too_few_slices"


def edit(path: Path, **values: object) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def test_what_an_element_lacks_is_named(tmp_path):
    path = write_series(tmp_path, HU)[2]
    edit(path, RescaleSlope=None)
    assert f"{path.name}: has no RescaleSlope" in str(refusal(tmp_path))


def test_a_map_of_dual_energy_is_refused(tmp_path):
    for path in write_series(tmp_path, HU):
        edit(path, RescaleType="Z_EFF")
    assert "holds Z_EFF, not HU" in str(refusal(tmp_path))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_a_preamble_are_read(tmp_path, syntax):
    for path in write_series(tmp_path, HU):
        dataset = pydicom.dcmread(path)
        content = BytesIO()
        pydicom.dcmwrite(
            content, pydicom.Dataset(dict(dataset.items())), implicit_vr=syntax.is_implicit_VR, little_endian=True,
            enforce_file_format=False,
        )  # fmt: skip
        path.write_bytes(content.getvalue())
        assert b"DICM" not in content.getvalue()[:200]
    assert np.array_equal(read(only(tmp_path)), HU)


def test_a_file_that_cannot_be_parsed_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(bytes(128) + b"DICM" + b"\x08\0\x05\0CS\xff\xff" + bytes(3))
    assert refusal(tmp_path).reason in ("bad_dicom", "not_ct")


@pytest.mark.parametrize(
    ("patient", "text", "is_mentioned"),
    [
        ({"PatientName": "Doe^Jane"}, "CHEST JANE", True),
        ({"PatientName": "Doe^Jane"}, "janedoe_1.dcm", True),
        ({"PatientName": "Doe^Jane"}, "CHEST 1.0 B60", False),
        ({"PatientName": "Li^An"}, "CHEST LI", True),
        ({"PatientName": "Li^An"}, "LIVER ANGIO", False),
        ({"PatientName": "Müller^Zoë"}, "Thorax MULLER", True),
        ({"PatientName": "\u5c71\u7530^\u592a\u90ce"}, "\u5c71\u7530CT", True),
        ({"PatientBirthDate": "19700131"}, "CT 1970-01-31", True),
        ({"PatientBirthDate": "19700131"}, "CT 31.01.1970", True),
        ({"PatientBirthDate": "19700131"}, "CT 31", False),
        ({"PatientID": "MRN-12345"}, "scan of mrn-12345", True),
        ({"PatientID": "7"}, "7 mm", False),
        ({"ReferringPhysicianName": "House^Gregory"}, "for Dr. House", True),
        ({}, "anything", False),
    ],
)
def test_a_text_that_mentions_a_person_is_found(patient, text, is_mentioned):
    dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in patient.items():
        setattr(dataset, keyword, value)
    assert mentions(text, read_identity([dataset])) is is_mentioned


def test_files_of_other_tools_are_refused_by_name_and_none_names_a_patient():
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    found = list_series(folder, with_ids=True)
    assert len(found) >= 30
    assert any(isinstance(series, VolumeError) and series.reason == "missing_slices" for series in found)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_dicom(path):
            with warnings.catch_warnings(action="ignore"):
                identity = read_identity(
                    [pydicom.dcmread(path, force=True, specific_tags=["PatientName", "PatientID"])]
                )
            for series in list_series(path):
                shown = str(series) if isinstance(series, VolumeError) else series.name
                assert not mentions(shown, identity), path
