"""Reads CT-RATE's CSVs and lists strictly: each row is read or is an error that names its file and line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.file_kinds import LONGEST, recognize_magic
from ctclip_model.data.names import VolumeName, parse_listed_name, parse_volume_name
from ctclip_model.errors import BadItemError, BadNameError, MetadataError
from tasks.sources.cells import read_age_years, read_count, read_date, read_flag, read_number, read_pair, read_text

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
        header = [column.strip() for column in next(reader, [])]
        if doubled := [column for column in required if header.count(column) > 1]:
            raise MetadataError(path, "unreadable_csv", f"has the column {', '.join(doubled)} twice")
        missing = [column for column in required if column not in header]
        if missing:
            kind = recognize_magic(text[:LONGEST].encode())
            cause = f" and {kind}" if kind else ""
            raise MetadataError(path, "unreadable_csv", f"has no column {', '.join(missing)}{cause}")
        for cells in reader:
            if cells:
                yield reader.line_num, dict(zip(header, cells, strict=False)) if len(cells) == len(header) else {}
    except csv.Error as error:
        raise MetadataError(path, "unreadable_csv", f"line {reader.line_num}: {error}") from error


def _add_row(table: Table, location: str, cells: dict[str, str], split: str) -> None:
    if not cells:
        raise MetadataError(location, "malformed_row", "has another number of cells than the header")
    try:
        name = parse_volume_name(cells["VolumeName"].strip())
    except BadNameError as error:
        raise BadNameError(f"{location} {error.item}", error.reason, error.detail) from error
    if name.split != split:
        raise MetadataError(location, "wrong_split", f"{name} stands in the table of {split}")
    if name in table.rows:
        raise MetadataError(location, "duplicate_row", f"{name} stands there twice")
    table.rows[name] = cells


def volume_row(name: VolumeName, cells: dict[str, str]) -> dict[str, Any]:
    """Columns of `volumes` from a row of metadata. A blank or impossible cell is null."""
    spacing_z = read_number(cells.get("ZSpacing"), "mm")
    spacing_x, spacing_y = read_pair(cells.get("XYSpacing"), spacing_z)
    return {
        "volume_name": str(name), "scan_id": name.scan_id, "patient_id": name.patient_id, "split": name.split,
        "reconstruction": name.reconstruction,
        "spacing_x_mm": spacing_x, "spacing_y_mm": spacing_y, "spacing_z_mm": spacing_z,
        "rescale_slope": read_number(cells.get("RescaleSlope")),
        "rescale_intercept": read_number(cells.get("RescaleIntercept"), "HU"),
        "count_slices": read_count(cells.get("NumberofSlices")),
        "count_rows": read_count(cells.get("Rows")), "count_columns": read_count(cells.get("Columns")),
        "manufacturer": read_text(cells.get("Manufacturer")),
        "convolution_kernel": read_text(cells.get("ConvolutionKernel")),
        "patient_sex": read_text(cells.get("PatientSex")),
        "patient_age_years": read_age_years(cells.get("PatientAge")),
        "study_date": read_date(cells.get("StudyDate")),
        "metadata": {key: value for key, value in cells.items() if value != "" and key != "VolumeName"},
    }  # fmt: skip


def report_row(name: VolumeName, cells: dict[str, str]) -> dict[str, Any]:
    """Columns of `reports` from a row of the CSV. A missing text is null."""
    return {
        "scan_id": name.scan_id, "patient_id": name.patient_id, "split": name.split,
        "clinical_information": read_text(cells.get("ClinicalInformation_EN")),
        "technique": read_text(cells.get("Technique_EN")),
        "findings": read_text(cells.get("Findings_EN")),
        "impression": read_text(cells.get("Impressions_EN")),
    }  # fmt: skip


def label_values(location: str, cells: dict[str, str]) -> tuple[int, ...]:
    """The 18 labels of a row, each 0 or 1. Raises `MetadataError` for anything else."""
    return tuple(label_value(location, abnormality, cells) for abnormality in ABNORMALITIES)


def label_value(location: str, abnormality: str, cells: dict[str, str]) -> int:
    """One label of a row, 0 or 1. Raises `MetadataError` for anything else."""
    value = read_flag(cells[abnormality])
    if value not in (0.0, 1.0):
        raise MetadataError(location, "bad_label", f"{abnormality} is {cells[abnormality]!r}, neither 0 nor 1")
    return int(value)
