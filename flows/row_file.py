"""A file of rows, one a volume, that grows by whole lines and that a killed call leaves fit for the next one."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import ConfigurationError, StorageError
from ctclip_model.files import is_stream, whole_file
from flows.prediction_rows import csv_cells, csv_columns, csv_line, printable

SUFFIXES = (".csv", ".jsonl")
BEGIN = '{"file": '  # start of each JSON line
KEY = "fingerprint"  # column with the hash of a row's file, model and options
BUSY = {errno.EAGAIN, errno.EACCES}
Row = dict[str, Any]


class RowFile:
    """Rows of `describe_prediction` in a CSV or JSON lines file, locked while it is open.

    A line is written by one call and synced. The end of a line that a killed call or a full disk broke off is dropped.
    `rows` are the rows of earlier calls, by file: of CSV as texts, by column. Raises `ConfigurationError` for a file of
    other content, and for one that another call writes. Raises `StorageError` for a disk that takes no more.
    """

    def __init__(self, path: Path, names: Sequence[str] = ABNORMALITIES) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise ConfigurationError(f"--output {path}: rows are written as {' or '.join(SUFFIXES)}")
        if is_stream(path) or path.is_dir() or not path.parent.is_dir():
            raise ConfigurationError(f"--output {path}: is a folder or no file, or its folder does not exist")
        self.path = path
        self.is_csv = path.suffix.lower() == ".csv"
        self.columns = [*csv_columns(names), KEY] if self.is_csv else []
        self.head = csv_line(self.columns) if self.is_csv else ""
        self.file = self._open()
        try:
            self.lines = self._read_lines()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    @property
    def rows(self) -> dict[str, Row]:
        """The rows of earlier calls, by file."""
        return {row["file"]: row for row, _ in self.lines}

    def keep(self, is_current: Callable[[Row], bool]) -> None:
        """Drops the rows that are outdated, by a complete new file that replaces this one."""
        kept = [(row, line) for row, line in self.lines if is_current(row)]
        if len(kept) == len(self.lines):
            return
        self.lines = kept
        try:
            with whole_file(self.path) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(self.head.encode() + b"".join(line for _, line in kept))
                file.flush()
                replacement = os.fdopen(os.dup(file.fileno()), "r+b", buffering=0)
        except OSError as error:
            raise self._full(error) from error
        self.file.close()
        self.file = replacement

    def append(self, row: Mapping[str, Any], key: str) -> None:
        """Writes a row with the fingerprint of its inputs."""
        if self.is_csv:
            line = csv_line([*csv_cells(row), key])
        else:
            line = json.dumps({**row, "file": printable(row["file"]), KEY: key}, allow_nan=False) + "\n"
        self._write(line.encode())

    def _write(self, data: bytes) -> None:
        end = self.file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self.file.write(data) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            self.file.truncate(end)
            raise self._full(error) from error

    def _full(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path}: cannot be written: {error.strerror}. Complete rows stay, and a rerun goes on"
        )

    def _open(self) -> BinaryIO:
        """Opens and locks the file that the path names, also if another call replaces it meanwhile."""
        while True:
            try:
                file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
            except OSError as error:
                raise ConfigurationError(f"--output {self.path}: cannot be opened: {error.strerror}") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in BUSY:
                    file.close()
                    raise ConfigurationError(f"--output {self.path}: another call is writing this file") from error
            if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                return file
            file.close()

    def _read_lines(self) -> list[tuple[Row, bytes]]:
        """The complete rows with their lines. Cuts off half a line, and writes the head of an empty file."""
        content = self.file.read()
        end = content.rfind(b"\n") + 1
        lines = content[:end].splitlines(keepends=True)
        try:
            if self.is_csv and lines and lines.pop(0).decode() != self.head:
                raise ValueError("other columns")
            begin = (self.head or BEGIN).encode()
            if end == 0 and not begin.startswith(content[: len(begin)]):
                raise ValueError("no line")
            found = [(self._parse(line.decode()), line) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"--output {self.path}: holds something other than rows of this command ({error}): name another file"
            ) from error
        if end < len(content):
            self.file.truncate(end)
        if end == 0:
            self._write(self.head.encode())
        return found

    def _parse(self, line: str) -> Row:
        if self.is_csv:
            (cells,) = csv.reader([line])
            return dict(zip(self.columns, cells, strict=True))
        row = json.loads(line)
        return {**row, "file": str(row["file"]), KEY: str(row[KEY])}
