"""The catalogue of a revision of CT-RATE: rows made from its tables and file facts, from a folder or from the Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import VolumeName
from ctclip_model.errors import BadItemError, MetadataError
from tasks.sources.storage import parse_storage
from tasks.sources.tables import (
    LABELS,
    METADATA,
    NO_CHEST,
    REPORTS,
    Table,
    label_values,
    read_list,
    read_table,
    report_row,
    volume_row,
)

Row = dict[str, Any]
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class FileFacts:
    """Place, size and hash of a volume's file, known before it is read."""

    path: str  # relative to the source
    size_bytes: int
    sha256: str | None
    checksum: str | None = None  # MD5, ETag or time of change of an object in a bucket


@dataclass
class Catalogue:
    """Rows of one revision, and the errors in its tables."""

    volumes: list[Row] = field(default_factory=list)
    reports: list[Row] = field(default_factory=list)
    published_labels: dict[str, list[Row]] = field(default_factory=dict)  # rows by scan
    exclusions: list[Row] = field(default_factory=list)
    errors: list[BadItemError] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # tables that cannot be read and so withdraw no row
    absent: list[str] = field(default_factory=list)  # tables that are not there
    notes: list[str] = field(default_factory=list)  # facts about its files that a person should know

    def count_files(self, split: str | None = None) -> tuple[int, int]:
        """Number of volumes with a file, and number of all volumes, of one split or of all."""
        rows = [row for row in self.volumes if split in (None, row["split"])]
        return sum(bool(row["sha256"] or row.get("checksum")) for row in rows), len(rows)


def build_catalogue(
    contents: Mapping[str, bytes | None],
    facts: Callable[[list[VolumeName]], Mapping[VolumeName, FileFacts]],
    storage: str,
) -> Catalogue:
    """Builds the catalogue from the tables in `contents`, as {path: bytes, or None for an absent file}.

    `facts` looks up the files of the named volumes. `storage` is their version and orientation. A row that cannot be
    read is an error, and the other rows are kept. A file that cannot be read is one error, and its path is in
    `unreadable`.
    """
    catalogue = Catalogue()
    for split in SPLITS:
        metadata = _read_table(catalogue, contents, METADATA[split], split, ("XYSpacing", "ZSpacing"))
        reports = _read_table(catalogue, contents, REPORTS[split], split, ("Findings_EN", "Impressions_EN"))
        labels = _read_table(catalogue, contents, LABELS[split], split, ABNORMALITIES)
        _add_volumes(catalogue, metadata, facts, storage)
        _note_missing_metadata(catalogue, metadata, reports, labels)
        _add_reports(catalogue, reports)
        _add_labels(catalogue, labels)
        if contents.get(NO_CHEST[split]) is None:
            catalogue.absent.append(NO_CHEST[split])
        names, errors = read_list(NO_CHEST[split], contents.get(NO_CHEST[split]), split)
        catalogue.errors += errors
        catalogue.exclusions += [
            {"volume_name": str(name), "reason": "no_chest", "detail": f"listed in {NO_CHEST[split]}"}
            for name in dict.fromkeys(names)
        ]
    for rows in (catalogue.volumes, catalogue.reports, catalogue.exclusions):
        for row in rows:
            row["fingerprint"] = compute_fingerprint(list(map(str, row.values())), VERSIONS["ingest"])
    return catalogue


def _read_table(
    catalogue: Catalogue, contents: Mapping[str, bytes | None], path: str, split: str, required: tuple[str, ...]
) -> Table:
    table = read_table(path, contents.get(path), split, required)
    catalogue.errors += table.errors
    if not table.is_readable:
        catalogue.unreadable.append(path)
    if not table.is_present:
        catalogue.absent.append(path)
    return table


def _add_volumes(
    catalogue: Catalogue,
    metadata: Table,
    facts: Callable[[list[VolumeName]], Mapping[VolumeName, FileFacts]],
    storage: str,
) -> None:
    files = facts(list(metadata.rows))
    for name, cells in metadata.rows.items():
        file = files.get(name)
        catalogue.volumes.append(
            volume_row(name, cells)
            | {
                "storage": storage,
                "path": file.path if file else str(name.path(parse_storage(storage)[0])),
                "size_bytes": file.size_bytes if file else None,
                "sha256": file.sha256 if file else None,
            }
            | ({"checksum": file.checksum} if file and file.checksum else {})  # no other row's fingerprint changes
        )


def _note_missing_metadata(catalogue: Catalogue, metadata: Table, reports: Table, labels: Table) -> None:
    """Adds an error for each volume of other tables without a row of metadata: its spacing is unknown."""
    if not (metadata.is_present and metadata.is_readable):
        return
    known = dict.fromkeys([*reports.rows, *labels.rows])
    catalogue.errors += [
        MetadataError(str(name), "missing_metadata", f"has no row in {metadata.path}")
        for name in known
        if name not in metadata.rows
    ]


def _add_reports(catalogue: Catalogue, reports: Table) -> None:
    by_scan: dict[str, Row] = {}
    for name, cells in reports.rows.items():
        row = report_row(name, cells)
        first = by_scan.setdefault(name.scan_id, row | {"is_disputed": False})
        if row != {key: value for key, value in first.items() if key != "is_disputed"}:
            first["is_disputed"] = True
    catalogue.reports += by_scan.values()


def _add_labels(catalogue: Catalogue, labels: Table) -> None:
    first: dict[str, tuple[int, ...]] = {}
    disputed: dict[str, set[int]] = {}
    for name, cells in labels.rows.items():
        try:
            values = label_values(f"{labels.path} {name}", cells)
        except MetadataError as error:
            catalogue.errors.append(error)
            continue
        known = first.setdefault(name.scan_id, values)
        if values != known:
            differing = {index for index, value in enumerate(values) if value != known[index]}
            disputed.setdefault(name.scan_id, set()).update(differing)
    for scan_id, values in first.items():
        wrong = disputed.get(scan_id, set())
        fingerprint = compute_fingerprint(values, sorted(wrong), VERSIONS["ingest"])
        catalogue.published_labels[scan_id] = [
            {
                "scan_id": scan_id, "abnormality": abnormality, "value": value, "is_disputed": index in wrong,
                "fingerprint": fingerprint,
            }
            for index, (abnormality, value) in enumerate(zip(ABNORMALITIES, values, strict=True))
        ]  # fmt: skip
