"""Edits and copies of folders in CT-RATE's layout, such as a phantom data set."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

from tasks.sources.tables import REPORTS


def find_volume(source: Path, name: str) -> Path:
    """Path of a volume's file."""
    return next(source.glob(f"dataset/*/*/*/{name}.nii.gz"))


def flatten(source: Path, folder: Path) -> Path:
    """Copies every file of a data set into one folder without folders."""
    folder.mkdir(parents=True)
    for path in source.rglob("*"):
        if path.is_file():
            shutil.copy2(path, folder)
    return folder


def edit_rows(path: Path, edit: Callable[[dict[str, str]], None]) -> None:
    """Rewrites a table with each of its rows edited in place."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        edit(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def edit_report(source: Path, findings: str, impression: str | None = None) -> str:
    """Gives the first validation scan another report, in each of its rows, and returns the scan's name."""
    path = source / REPORTS["valid"]
    with path.open(newline="") as file:
        scan = next(csv.DictReader(file))["VolumeName"].rsplit("_", 1)[0]

    def edit(row: dict[str, str]) -> None:
        if row["VolumeName"].startswith(f"{scan}_"):
            row["Findings_EN"] = findings
            row["Impressions_EN"] = row["Impressions_EN"] if impression is None else impression

    edit_rows(path, edit)
    return scan
