"""Names of CT-RATE, `split_patient_scan_recon`, and of RAD-ChestCT: strict parsers, and paths made of names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from ctclip_model.errors import BadNameError

# Orientations of a CT's array beside codes of three letters: as a header's affine says, or as the array lies.
HEADER = "header"
STORED = "stored"

Storage = Literal["v2", "v1"]

SUFFIX = ".nii.gz"
VOLUME_PATTERN = re.compile(r"(train|valid)_([1-9][0-9]{0,6})_([a-z]{1,3})_([1-9][0-9]{0,2})", re.ASCII)
RAD_PATTERN = re.compile(r"(?:trn|val|tst)[0-9]{5}", re.ASCII)
# files that a file system may have renamed: in capital letters, or unpacked
VOLUME_FILE = re.compile(rf"({VOLUME_PATTERN.pattern})\.nii(?:\.gz)?", re.ASCII | re.IGNORECASE)
RAD_FILE = re.compile(rf"({RAD_PATTERN.pattern})\.npz", re.ASCII | re.IGNORECASE)
EXTERNAL = "external"  # split of data sets that only evaluate models


@dataclass(frozen=True, order=True)
class VolumeName:
    """A reconstruction of a scan, e.g. `valid_53_a_1`: split valid, patient 53, scan a, reconstruction 1."""

    split: str
    patient: int
    scan: str
    reconstruction: int

    def __str__(self) -> str:
        return f"{self.scan_id}_{self.reconstruction}"

    @property
    def patient_id(self) -> str:
        return f"{self.split}_{self.patient}"

    @property
    def scan_id(self) -> str:
        return f"{self.patient_id}_{self.scan}"

    def path(self, storage: Storage = "v2") -> PurePosixPath:
        """The volume's path in CT-RATE, relative to the data set's root."""
        folder = f"{self.split}_fixed" if storage == "v2" else self.split
        return PurePosixPath("dataset", folder, self.patient_id, self.scan_id, f"{self}{SUFFIX}")


@dataclass(frozen=True, order=True)
class RadName:
    """A scan of RAD-ChestCT, e.g. `trn00001`. All of its own splits are external to CT-RATE."""

    scan_id: str

    def __str__(self) -> str:
        return self.scan_id

    def path(self, storage: str = "") -> PurePosixPath:
        return PurePosixPath(f"{self.scan_id}.npz")


def parse_rad_name(text: str) -> RadName:
    """Parses a name of RAD-ChestCT, with or without `.npz`. Raises `BadNameError` for anything else."""
    name = text.removesuffix(".npz")
    if not RAD_PATTERN.fullmatch(name):
        raise BadNameError(text[:200], "bad_name", "is not of RAD-ChestCT, such as trn00001")
    return RadName(name)


def split_of(item: str) -> str:
    """The split of a volume's or a scan's name."""
    return EXTERNAL if RAD_PATTERN.fullmatch(item) else item.partition("_")[0]


def parse_volume_name(text: str) -> VolumeName:
    """Parses a volume's name, with or without `.nii.gz`.

    Raises `BadNameError` for anything else, also for a path: no other name may become a path of ours.
    """
    match = VOLUME_PATTERN.fullmatch(text.removesuffix(SUFFIX))
    if match is None:
        raise BadNameError(text[:200], "bad_name", "is not split_patient_scan_recon, such as valid_53_a_1")
    split, patient, scan, reconstruction = match.groups()
    return VolumeName(split, int(patient), scan, int(reconstruction))


def parse_any_name(text: str) -> VolumeName | RadName:
    """Parses a volume's name of either data set. Raises `BadNameError`."""
    return parse_rad_name(text) if RAD_PATTERN.match(text) else parse_volume_name(text)


def parse_listed_name(line: str) -> VolumeName:
    """Parses a line of a `no_chest_*.txt` list: a volume's name, or a path that ends in one."""
    return parse_volume_name(PurePosixPath(line.strip()).name)


def name_of_file(file_name: str, pattern: re.Pattern[str] = VOLUME_FILE) -> str | None:
    """Name of the volume that a file is called after, or None for a file with another name.

    >>> name_of_file("VALID_53_A_1.nii")
    'valid_53_a_1'
    """
    match = pattern.fullmatch(file_name)
    return match[1].lower() if match else None
