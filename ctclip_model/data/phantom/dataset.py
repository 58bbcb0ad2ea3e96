"""A small data set of phantoms in the folders and CSV files of CT-RATE, with its known anomalies on request."""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import SUFFIX, Storage, VolumeName
from ctclip_model.data.phantom import metadata
from ctclip_model.data.phantom.anatomy import PAINTERS, Reconstruction, Scan, draw_body, render
from ctclip_model.data.phantom.reports import write_clinical_information, write_report, write_technique
from ctclip_model.errors import ConfigurationError
from ctclip_model.seeds import check_seed

VISIBLE_ABNORMALITIES = tuple(name for name in ABNORMALITIES if name in PAINTERS or name == "Cardiomegaly")
MARKER = "PHANTOM.json"  # file that only phantoms have; it holds their configuration
# Known anomalies of CT-RATE. Each is made in the first volume of one train patient, in this order.
ANOMALIES = (
    "missing_zspacing",
    "wrong_header",
    "no_chest",
    "missing_file",
    "truncated_gzip",
    "impression_not_given",
    "all_zero",
)
PREVALENCE, RARE_PREVALENCE = 0.3, 0.03  # shares of scans with an abnormality that volumes show, or only reports
SECTIONS = ("ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
PATIENTS_PER_JOB = 50
GZIP = 31  # `wbits` of a gzip stream. `gzip.compress` writes another header from Python 3.13 on


@dataclass(frozen=True)
class PhantomConfig:
    """Settings of a data set. The same configuration gives the same files, byte for byte."""

    seed: int = 0
    train_patients: int = 100
    valid_patients: int = 20
    storage: Storage = "v2"
    anomalies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if unknown := set(self.anomalies) - set(ANOMALIES):
            raise ConfigurationError(f"unknown anomalies {sorted(unknown)}; there are {', '.join(ANOMALIES)}")
        if self.anomalies and self.train_patients < len(ANOMALIES):
            raise ConfigurationError(f"anomalies take {len(ANOMALIES)} train patients; got {self.train_patients}")


@dataclass(frozen=True)
class VolumeRow:
    """A volume's rows in the CSV files."""

    name: VolumeName
    metadata: dict[str, Any]
    report: dict[str, str]
    abnormalities: tuple[str, ...]


def make_phantoms(folder: Path, config: PhantomConfig | None = None, *, processes: int | None = None) -> int:
    """Writes a data set of phantoms to `folder` and returns the number of volumes it lists.

    `processes` is one per core by default, and changes no file.
    """
    config = config or PhantomConfig()
    patients = [("train", number + 1) for number in range(config.train_patients)]
    patients += [("valid", number + 1) for number in range(config.valid_patients)]
    jobs = [patients[start : start + PATIENTS_PER_JOB] for start in range(0, len(patients), PATIENTS_PER_JOB)]
    rows = [row for part in _map(partial(_make_patients, folder, config), jobs, processes) for row in part]
    for split in ("train", "valid"):
        _write_tables(folder / "dataset", split, [row for row in rows if row.name.split == split], config)
    (folder / MARKER).write_text(json.dumps(dataclasses.asdict(config)), "utf-8")
    return len(rows)


def _map(function: partial[list[VolumeRow]], jobs: list[Any], processes: int | None) -> Iterator[list[VolumeRow]]:
    count = min(processes or os.cpu_count() or 1, len(jobs))
    if count < 2:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, jobs)


def _make_patients(folder: Path, config: PhantomConfig, patients: list[tuple[str, int]]) -> list[VolumeRow]:
    return [row for split, number in patients for row in _make_patient(folder, config, split, number)]


def _make_patient(folder: Path, config: PhantomConfig, split: str, number: int) -> Iterator[VolumeRow]:
    rng = np.random.default_rng([config.seed, split == "valid", number])
    anomaly = _anomaly_of(config, split, number)
    body = draw_body(rng)
    person = metadata.draw_person(rng)
    for letter in "abc"[: rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])]:
        abnormalities = draw_abnormalities(rng)
        scan = Scan(body, abnormalities, seed=int(rng.integers(2**32)), is_chest=anomaly != "no_chest")
        report = write_report(abnormalities, split, rng)
        impression = "Not given." if anomaly == "impression_not_given" else report.impression
        sections = (write_clinical_information(rng), write_technique(rng), report.findings, impression)
        scanner = metadata.draw_scanner(rng)
        for count in range(int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))):
            name = VolumeName(split, number, letter, count + 1)
            reconstruction = draw_reconstruction(scanner.intercept, rng)
            row = metadata.describe(name, person, scanner, reconstruction, rng)
            is_first = letter == "a" and count == 0
            if is_first and anomaly == "missing_zspacing":
                row["ZSpacing"] = ""
            _write_volume(folder, name, config.storage, scan, reconstruction, anomaly if is_first else "")
            yield VolumeRow(name, row, dict(zip(SECTIONS, sections, strict=True)), tuple(abnormalities))


def _anomaly_of(config: PhantomConfig, split: str, number: int) -> str:
    anomaly = ANOMALIES[number - 1] if split == "train" and number <= len(ANOMALIES) else ""
    return anomaly if anomaly in config.anomalies else ""


def draw_abnormalities(rng: Generator) -> dict[str, str]:
    """Draws the abnormalities of a scan, each independently of the others, and their sides."""
    drawn = {}
    for abnormality in ABNORMALITIES:
        side = ("right", "left", "bilateral")[rng.choice(3, p=[0.3, 0.3, 0.4])]
        if rng.random() < (PREVALENCE if abnormality in VISIBLE_ABNORMALITIES else RARE_PREVALENCE):
            drawn[abnormality] = "left" if abnormality == "Medical material" and side == "bilateral" else side
    return drawn


def draw_reconstruction(padding_hu: int, rng: Generator) -> Reconstruction:
    """Draws a kernel, slice distance and field of view. A small voxel count keeps rendering at some milliseconds."""
    side = int(rng.choice([46, 48, 52]))
    field_of_view_mm, slice_mm = rng.uniform(325, 355), float(rng.choice([8.0, 9.0, 10.0]))
    is_sharp = bool(rng.random() < 0.5)
    return Reconstruction(
        shape=(side, side, int(rng.uniform(280, 305) / slice_mm)),
        spacing_mm=(round(field_of_view_mm / side, 6), round(field_of_view_mm / side, 6), slice_mm),
        noise_hu=rng.uniform(25, 50) if is_sharp else rng.uniform(10, 25),
        is_sharp=is_sharp,
        padding_hu=padding_hu,
        seed=int(rng.integers(2**32)),
    )


def _write_volume(
    folder: Path, name: VolumeName, storage: Storage, scan: Scan, reconstruction: Reconstruction, anomaly: str
) -> None:
    if anomaly == "missing_file":
        return
    volume = render(scan, reconstruction)
    if storage == "v1":  # the scanner's stored values: HU = 1 x stored value + intercept
        volume = volume - np.int16(reconstruction.padding_hu)
    if anomaly == "all_zero":
        volume = np.zeros_like(volume)
    spacing = (1.0, 1.0, 1.0) if anomaly == "wrong_header" else reconstruction.spacing_mm
    data = zlib.compress(_nifti(volume, spacing), level=1, wbits=GZIP)
    path = folder / name.path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[: len(data) // 2] if anomaly == "truncated_gzip" else data)


def _nifti(volume: NDArray[np.int16], spacing_mm: tuple[float, float, float]) -> bytes:
    import nibabel as nib  # imported late: a catalogue needs the phantoms' facts alone

    image = nib.Nifti1Image(volume, np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0]))
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def _write_tables(dataset: Path, split: str, rows: list[VolumeRow], config: PhantomConfig) -> None:
    long = {"train": "train", "valid": "validation"}[split]
    names = [f"{row.name}{SUFFIX}" for row in rows]
    _write_csv(
        dataset / "metadata" / f"{long}_metadata.csv",
        metadata.COLUMNS,
        ({"VolumeName": name} | row.metadata for name, row in zip(names, rows, strict=True)),
    )
    _write_csv(
        dataset / "radiology_text_reports" / f"{long}_reports.csv",
        ("VolumeName", *SECTIONS),
        ({"VolumeName": name} | row.report for name, row in zip(names, rows, strict=True)),
    )
    _write_csv(
        dataset / "multi_abnormality_labels" / f"{split}_predicted_labels.csv",
        ("VolumeName", *ABNORMALITIES),
        (
            {"VolumeName": name} | {abnormality: int(abnormality in row.abnormalities) for abnormality in ABNORMALITIES}
            for name, row in zip(names, rows, strict=True)
        ),
    )
    no_chest = [row.name for row in rows if _anomaly_of(config, split, row.name.patient) == "no_chest"]
    lines = "".join(f"{name.path('v1')}\n" for name in no_chest)  # full v1 paths, as on some lines of CT-RATE's lists
    (dataset / "metadata" / f"no_chest_{split}.txt").write_text(lines, "utf-8")


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
