"""Reads CT-RATE's CSVs and lists strictly: each row is read or is an error that names its file and line."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import VolumeName, parse_listed_name, parse_volume_name
from ctclip_model.errors import BadItemError, BadNameError, MetadataError

csv.field_size_limit(16_000_000)

# paths in CT-RATE, with its own odd names: `validation_` here, `valid_` there
METADATA = {"train": "dataset/metadata/train_metadata.csv", "valid": "dataset/metadata/validation_metadata.csv"}
REPORTS = {
    "train": "dataset/radiology_text_reports/train_reports.csv",
    "valid": "dataset/radiology_text_reports/validation_reports.csv",
}
LABELS = {
    "train": "dataset/multi_abnormality_labels/train_predicted_labels.csv",
    "valid": "dataset/multi_abnormality_labels/valid_predicted_labels.csv",
}
NO_CHEST = {"train": "dataset/metadata/no_chest_train.txt", "valid": "dataset/metadata/no_chest_valid.txt"}


@dataclass
class Table:
    """Rows of one CSV by volume, and its errors."""

    path: str
    rows: dict[VolumeName, dict[str, str]] = field(default_factory=dict)
    errors: list[BadItemError] = field(default_factory=list)
    is_present: bool = True
    is_readable: bool = True


def read_table(path: str, content: bytes | None, split: str, required: tuple[str, ...]) -> Table:
    """Reads a CSV with a column VolumeName. A file that cannot be read is one error.

    `content` is None for an absent file, `split` the split of all volumes, `required` the columns that must be there.
    """
    if content is None:
        return Table(path, is_present=False)
    table = Table(path)
    try:
        for line, cells in read_rows(path, _decode(path, content), ("VolumeName", *required)):
            try:
                _add_row(table, f"{path}:{line}", cells, split)
            except BadItemError as error:
                table.errors.append(error)
    except MetadataError as error:
        return Table(path, errors=[error], is_readable=False)
    return table


def read_list(path: str, content: bytes | None, split: str) -> tuple[list[VolumeName], list[BadItemError]]:
    """Reads the volumes of a `no_chest_*.txt`, one name or path a line, that are of the split."""
    names: list[VolumeName] = []
    errors: list[BadItemError] = []
    for line in (content or b"").decode("utf-8-sig", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            name = parse_listed_name(line)
        except BadNameError as error:
            errors.append(BadNameError(f"{path}: {error.item}", error.reason, error.detail))
            continue
        if name.split == split:
            names.append(name)
    return names, errors


def _decode(path: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MetadataError(path, "unreadable_csv", f"is not UTF-8: {error.reason} at byte {error.start}") from error


def read_rows(path: str, text: str, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line, cells) of each row of a CSV. Cells are empty if their number is another than the header's.

    A row's line is the one that it ends on. Raises `MetadataError` if a required column is missing or the text is no
    CSV.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        missing = [column for column in required if column not in header]
        if missing:
            raise MetadataError(path, "unreadable_csv", f"has no column {', '.join(missing)}")
        for cells in reader:
            if cells:
                yield reader.line_num, dict(zip(header, cells, strict=False)) if len(cells) == len(header) else {}
    except csv.Error as error:
        raise MetadataError(path, "unreadable_csv", f"line {reader.line_num}: {error}") from error


def _add_row(table: Table, location: str, cells: dict[str, str], split: str) -> None:
    if not cells:
        raise MetadataError(location, "malformed_row", "has another number of cells than the header")
    try:
        name = parse_volume_name(cells["VolumeName"])
    except BadNameError as error:
        raise BadNameError(f"{location} {error.item}", error.reason, error.detail) from error
    if name.split != split:
        raise MetadataError(location, "wrong_split", f"{name} stands in the table of {split}")
    if name in table.rows:
        raise MetadataError(location, "duplicate_row", f"{name} stands there twice")
    table.rows[name] = cells


def volume_row(name: VolumeName, cells: dict[str, str]) -> dict[str, Any]:
    """Columns of `volumes` from a row of metadata. A blank or impossible cell is null."""
    spacing = re.findall(r"[0-9.eE+-]+", cells.get("XYSpacing", ""))
    return {
        "volume_name": str(name), "scan_id": name.scan_id, "patient_id": name.patient_id, "split": name.split,
        "reconstruction": name.reconstruction,
        "spacing_x_mm": _number(spacing[0]) if spacing else None,
        "spacing_y_mm": _number(spacing[-1]) if spacing else None,
        "spacing_z_mm": _number(cells.get("ZSpacing")),
        "rescale_slope": _number(cells.get("RescaleSlope")),
        "rescale_intercept": _number(cells.get("RescaleIntercept")),
        "count_slices": _integer(cells.get("NumberofSlices")),
        "count_rows": _integer(cells.get("Rows")), "count_columns": _integer(cells.get("Columns")),
        "manufacturer": cells.get("Manufacturer") or None,
        "convolution_kernel": cells.get("ConvolutionKernel") or None,
        "patient_sex": cells.get("PatientSex") or None,
        "patient_age_years": _age_years(cells.get("PatientAge")),
        "study_date": _date(cells.get("StudyDate")),
        "metadata": {key: value for key, value in cells.items() if value != "" and key != "VolumeName"},
    }  # fmt: skip


def report_row(name: VolumeName, cells: dict[str, str]) -> dict[str, Any]:
    """Columns of `reports` from a row of the CSV. An empty cell is null."""
    return {
        "scan_id": name.scan_id, "patient_id": name.patient_id, "split": name.split,
        "clinical_information": cells.get("ClinicalInformation_EN") or None,
        "technique": cells.get("Technique_EN") or None,
        "findings": cells.get("Findings_EN") or None,
        "impression": cells.get("Impressions_EN") or None,
    }  # fmt: skip


def label_values(location: str, cells: dict[str, str]) -> tuple[int, ...]:
    """The 18 labels of a row, each 0 or 1. Raises `MetadataError` for anything else."""
    return tuple(label_value(location, abnormality, cells) for abnormality in ABNORMALITIES)


def label_value(location: str, abnormality: str, cells: dict[str, str]) -> int:
    """One label of a row, 0 or 1. Raises `MetadataError` for anything else."""
    value = _number(cells[abnormality])
    if value not in (0.0, 1.0):
        raise MetadataError(location, "bad_label", f"{abnormality} is {cells[abnormality]!r}, neither 0 nor 1")
    return int(value)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _integer(text: str | None) -> int | None:
    value = _number(text)
    return int(value) if value is not None and abs(value) < 2**31 else None


def _age_years(text: str | None) -> int | None:
    """Full years of a DICOM age, such as `036Y` or `018M`."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", (text or "").strip())
    if match is None:
        return None
    return int(int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[match[2]])


def _date(text: str | None) -> date | None:
    """A DICOM date, such as `20210427`."""
    try:
        return datetime.strptime((text or "").removesuffix(".0"), "%Y%m%d").date()
    except ValueError:
        return None
