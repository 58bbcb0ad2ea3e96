"""Reads labels of one's own from a CSV or Parquet file, wide or long, into a table of scans and findings."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ctclip_model.data.label_sets import LabelSet
from ctclip_model.data.reports import is_missing
from ctclip_model.errors import BadItemError, ConfigurationError, MetadataError
from tasks.labels.hand_labels import decode_text
from tasks.sources.cells import read_flag

ITEM_COLUMNS = ("volumename", "volume", "volumeid", "scanid", "scan", "scanname", "item", "name", "id")
FINDING_COLUMNS = ("finding", "abnormality", "labelname", "pathology")
VALUE_COLUMNS = ("value", "label", "probability", "score")
SUFFIXES = (".nii.gz", ".nii", ".npz")
SEPARATORS = ",;\t|"
SHOWN = 3  # cells of a row in the detail of its reject
Cells = Sequence[str | None]


@dataclass
class LabelTable:
    """Labels by scan: `values` (scans, findings) in [0, 1], NaN where unknown. `errors` are what could not be taken."""

    scans: list[str]
    values: NDArray[np.float64]
    errors: list[BadItemError] = field(default_factory=list)

    @property
    def has_probabilities(self) -> NDArray[np.bool_]:
        """True for each finding with a value other than 0 and 1, (findings,)."""
        return np.any((self.values > 0) & (self.values < 1), axis=0)


@dataclass(frozen=True)
class Layout:
    """Columns of a file: names of scans or volumes, and either a column a finding (wide) or two for all (long)."""

    item: int
    findings: dict[int, int]  # wide: column -> index of the finding
    finding: int = -1  # long: column of the finding's name
    value: int = -1  # long: column of the value

    @property
    def is_long(self) -> bool:
        return self.finding >= 0


def read_label_table(path: Path, label_set: LabelSet, scan_of: Mapping[str, str]) -> LabelTable:
    """Reads the labels of a set's findings. `scan_of` has the scan of each known scan and volume.

    A value is 0, 1, a probability between, or -1 or a blank for an unknown label. Rows of one scan are merged. An
    unknown name, finding or value, and values of one scan that contradict each other, are errors of the table.

    Raises `ConfigurationError` for a file that cannot be read, has no such columns, or names no finding of the set.
    """
    header, rows = _open_rows(path)
    layout, errors = _find_layout(path, header, label_set)
    reader = _Reader(label_set, layout, scan_of, len(header), errors)
    for line, cells in rows:
        reader.add(line, cells)
    return reader.finish()


class _Reader:
    """Merges rows into labels by scan."""

    def __init__(
        self, label_set: LabelSet, layout: Layout, scan_of: Mapping[str, str], width: int, errors: list[BadItemError]
    ) -> None:
        self.label_set, self.layout, self.scan_of, self.width, self.errors = label_set, layout, scan_of, width, errors
        self.by_scan: dict[str, NDArray[np.float64]] = {}
        self.disputed: dict[str, set[int]] = {}
        self.known: dict[str | None, float | None] = {}  # values of cells: null for what is none
        self.unknown: set[str] = set()  # names and findings that are reported already

    def add(self, line: int, cells: Cells) -> None:
        if len(cells) != self.width:
            self._reject(f"line {line}", "malformed_row", f"has {len(cells)} cells, and the header has {self.width}")
            return
        name = (cells[self.layout.item] or "").strip()
        scan = self.scan_of.get(_without_suffix(name))
        if scan is None:
            self._reject_once(name or f"line {line}", "unknown_name", "is no scan or volume of the warehouse")
        elif self.layout.is_long:
            finding = (cells[self.layout.finding] or "").strip()
            index = self.label_set.find(finding)
            if index is None:
                self._reject_once(finding or f"line {line}", "unknown_finding", f"is not in {self.label_set.name}")
            else:
                self._merge(name, scan, [(index, cells[self.layout.value])])
        else:
            self._merge(name, scan, [(index, cells[column]) for column, index in self.layout.findings.items()])

    def _merge(self, name: str, scan: str, cells: Sequence[tuple[int, str | None]]) -> None:
        row = self.by_scan.get(scan)
        if row is None:
            row = self.by_scan[scan] = np.full(len(self.label_set), np.nan)
        bad = []
        for index, cell in cells:
            try:
                value = self.known[cell]
            except KeyError:
                value = self.known[cell] = read_value(cell)
            if value is None:
                bad.append(f"{self.label_set.names[index]} is {(cell or '')[:40]!r}")
            elif value == value:
                if row[index] != row[index] or row[index] == value:
                    row[index] = value
                else:
                    self.disputed.setdefault(scan, set()).add(index)
        if bad:
            more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            detail = f"{', '.join(bad[:SHOWN])}{more}: neither 0, 1, -1, blank nor a probability"
            self._reject(name, "bad_value", detail)

    def finish(self) -> LabelTable:
        for scan, indices in self.disputed.items():
            names = ", ".join(self.label_set.names[index] for index in sorted(indices)[:SHOWN])
            self._reject(scan, "contradiction", f"has two values of {len(indices)} findings, such as {names}")
            self.by_scan[scan][sorted(indices)] = np.nan
        kept = {scan: row for scan, row in self.by_scan.items() if not np.isnan(row).all()}
        values = np.stack(list(kept.values())) if kept else np.empty((0, len(self.label_set)))
        return LabelTable(list(kept), values, self.errors)

    def _reject_once(self, item: str, reason: str, detail: str) -> None:
        if item not in self.unknown:
            self.unknown.add(item)
            self._reject(item, reason, detail)

    def _reject(self, item: str, reason: str, detail: str) -> None:
        self.errors.append(MetadataError(item, reason, detail))


def read_value(cell: str | None) -> float | None:
    """A label in [0, 1], NaN for a blank cell or -1, or None for anything else."""
    if cell is None or not cell.strip() or (is_missing(cell) and any(map(str.isalnum, cell))):
        return float("nan")
    value = read_flag(cell)
    if value == -1:
        return float("nan")
    return value if value is not None and 0 <= value <= 1 else None


def _without_suffix(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def _find_layout(path: Path, header: Sequence[str], label_set: LabelSet) -> tuple[Layout, list[BadItemError]]:
    plain = ["".join(filter(str.isalnum, column.casefold())) for column in header]
    items = [plain.index(name) for name in ITEM_COLUMNS if name in plain]
    if not items:
        raise ConfigurationError(
            f"{path}: no column names scans or volumes: call it scan_id or volume_name. Its columns are "
            f"{', '.join(map(repr, header[:10]))}"
        )
    item = items[0]
    finding = next((plain.index(name) for name in FINDING_COLUMNS if name in plain), -1)
    value = next((plain.index(name) for name in VALUE_COLUMNS if name in plain), -1)
    if finding >= 0 and value >= 0 and label_set.find(header[finding]) is None:
        return Layout(item, {}, finding, value), []
    found, errors = {}, list[BadItemError]()
    for column, name in enumerate(header):
        if column == item:
            continue
        index = label_set.find(name)
        if index is None:
            detail = f"is a column of {path.name} and no finding of {label_set.name}"
            errors.append(MetadataError(name.strip() or f"column {column + 1}", "unknown_finding", detail))
        else:
            found[column] = index
    if not found:
        raise ConfigurationError(
            f"{path}: no column is a finding of {label_set.name}, such as {label_set.names[0]!r}. Other findings need "
            "--findings FINDINGS.toml"
        )
    return Layout(item, found), errors


def _open_rows(path: Path) -> tuple[list[str], Iterable[tuple[int, Cells]]]:
    """Header and numbered rows of a file. Raises `ConfigurationError` for another kind of file, and an empty one."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".txt", ".parquet"):
        raise ConfigurationError(f"{path}: labels are read from .csv or .parquet")
    try:
        if suffix == ".parquet":
            table = pq.ParquetFile(path).read()
            return list(table.column_names), enumerate(_text_rows(table), start=1)
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pa.ArrowException as error:
        raise ConfigurationError(f"{path}: is no Parquet file ({error})") from error
    return _open_csv(path, text)


def _open_csv(path: Path, text: str) -> tuple[list[str], Iterable[tuple[int, Cells]]]:
    first = text.partition("\n")[0]
    if not first.strip():
        raise ConfigurationError(f"{path}: is empty, or its first line is")
    separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)

    def read_lines() -> Iterator[tuple[int, Cells]]:
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise ConfigurationError(f"{path}: line {reader.line_num} is no CSV ({error})") from error

    rows = read_lines()
    _, header = next(rows)
    return [column or "" for column in header], rows


def _text_rows(table: pa.Table) -> Iterator[Cells]:
    """Rows of a Parquet table as the cells of a CSV. Null stays null."""
    columns = [[None if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return zip(*columns, strict=True)


def describe_errors(errors: Sequence[BadItemError]) -> str:
    """Counts of errors by reason, such as `2 bad_value, 1 unknown_name`."""
    reasons = sorted({error.reason for error in errors})
    return ", ".join(f"{sum(error.reason == reason for error in errors):,} {reason}" for reason in reasons)
