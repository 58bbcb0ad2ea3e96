"""Rows of CT-RATE's metadata CSV for phantoms: 44 columns, in the scanners' terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.random import Generator

from ctclip_model.data.names import VolumeName
from ctclip_model.data.phantom.anatomy import Reconstruction

_COLUMNS = """
VolumeName Manufacturer SeriesDescription ManufacturerModelName PatientSex PatientAge
ReconstructionDiameter DistanceSourceToDetector DistanceSourceToPatient GantryDetectorTilt TableHeight
RotationDirection ExposureTime XRayTubeCurrent Exposure FilterType GeneratorPower FocalSpots
ConvolutionKernel PatientPosition RevolutionTime SingleCollimationWidth TotalCollimationWidth
TableSpeed TableFeedPerRotation SpiralPitchFactor DataCollectionCenterPatient
ReconstructionTargetCenterPatient ExposureModulationType CTDIvol ImagePositionPatient
ImageOrientationPatient SliceLocation SamplesPerPixel PhotometricInterpretation Rows Columns XYSpacing
RescaleIntercept RescaleSlope RescaleType NumberofSlices ZSpacing StudyDate
"""
COLUMNS = tuple(_COLUMNS.split())


@dataclass(frozen=True)
class Person:
    sex: str
    age_years: int


@dataclass(frozen=True)
class Scanner:
    """A scanner and its entries in the CSV. `intercept` is also the HU outside its field of view."""

    manufacturer: str
    model: str
    intercept: int
    kernels: tuple[str, str]  # soft, sharp
    constants: tuple[tuple[str, Any], ...]  # columns with one value in all of the scanner's rows


SCANNERS = (
    Scanner("Philips", "iCT 256", -1024, ("B", "YA"), (("ExposureTime", 622), ("ExposureModulationType", "Z DOM"))),
    Scanner(
        "Siemens Healthineers",
        "SOMATOM go.All",
        -8192,
        ("['Br40f', '3']", "['Br60f', '3']"),
        (
            ("DistanceSourceToDetector", 983),
            ("DistanceSourceToPatient", 535),
            ("GeneratorPower", 15),
            ("FocalSpots", "[1.2, 1.2]"),
            ("RevolutionTime", 0.33),
            ("SingleCollimationWidth", 0.7),
            ("TotalCollimationWidth", 22.4),
            ("TableSpeed", 43.9),
            ("TableFeedPerRotation", 14.56),
            ("SpiralPitchFactor", 0.65),
            ("ExposureModulationType", "OFF_OFF"),
            ("RescaleType", "HU"),
        ),
    ),
    Scanner("PNMS", "MX 16", -1024, ("B", "D"), (("DistanceSourceToDetector", 1040), ("RevolutionTime", 0.75))),
)


def draw_person(rng: Generator) -> Person:
    return Person("MF"[rng.integers(2)], int(rng.integers(18, 90)))


def draw_scanner(rng: Generator) -> Scanner:
    """Draws a scanner, about as often as it occurs in CT-RATE."""
    return SCANNERS[rng.choice(len(SCANNERS), p=[0.6, 0.3, 0.1])]


def describe(
    name: VolumeName, person: Person, scanner: Scanner, reconstruction: Reconstruction, rng: Generator
) -> dict[str, Any]:
    """A volume's row, without its name. Columns that the scanner does not fill are missing, thus empty in the CSV."""
    (columns, rows, slices), (spacing, _, slice_mm) = reconstruction.shape, reconstruction.spacing_mm
    kernel = scanner.kernels[reconstruction.is_sharp]
    position_mm = round(float(rng.uniform(-1300, 600)), 1)
    current_ma = int(rng.integers(80, 480))
    return {
        "Manufacturer": scanner.manufacturer,
        "SeriesDescription": f"Thorax phantom {name.reconstruction}",
        "ManufacturerModelName": scanner.model,
        "PatientSex": person.sex,
        "PatientAge": f"{person.age_years:03d}Y",
        "ReconstructionDiameter": round(spacing * columns),
        "GantryDetectorTilt": 0,
        "TableHeight": int(rng.integers(70, 190)),
        "RotationDirection": "CW",
        "XRayTubeCurrent": current_ma,
        "Exposure": current_ma // 2,
        "FilterType": "FLAT",
        "ConvolutionKernel": kernel,
        "PatientPosition": "HFS",
        "CTDIvol": round(float(rng.uniform(3, 16)), 6),
        "ImagePositionPatient": f"[{-spacing * columns / 2}, {-spacing * rows / 2}, {position_mm}]",
        "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
        "SliceLocation": position_mm,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "XYSpacing": f"[{spacing}, {spacing}]",
        "RescaleIntercept": scanner.intercept,
        "RescaleSlope": 1,
        "NumberofSlices": slices,
        "ZSpacing": slice_mm,
        "StudyDate": f"20{rng.integers(18, 24)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
    } | dict(scanner.constants)
