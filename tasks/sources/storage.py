"""Storage of CT-RATE's volumes: their version, v1 or v2, and the orientation of their arrays, as one text.

`v2` and `v1` are arrays taken as they lie, as the published system takes them. `v2-header` arrays are turned to LPS by
their headers, `v1-RAS` arrays from that orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from ctclip_model.config import Recipe
from ctclip_model.data.names import HEADER, STORED, Storage, VolumeName
from ctclip_model.data.orientation import LPS, check_code
from ctclip_model.errors import ConfigurationError, VolumeError

VERSIONS: tuple[Storage, ...] = get_args(Storage)
MASK_WORDS = ("mask", "seg")  # in names of folders: masks are called as their volumes are
JUDGED_AT_MOST = 5  # volumes that are read to tell v1 from v2
JUDGING = Recipe("judging", spacing_mm=(24.0, 24.0, 24.0), shape=(8, 8, 8))  # small: its voxels are not used


def parse_storage(text: str) -> tuple[Storage, str]:
    """Version and orientation of a storage."""
    version, _, orientation = text.partition("-")
    return cast(Storage, version), orientation or STORED


def format_storage(version: Storage, orientation: str) -> str:
    """Storage of a version and an orientation."""
    return version if orientation == STORED else f"{version}-{orientation}"


def check_orientation(orientation: str) -> str:
    """The orientation `stored`, `header` or a code. LPS is `stored`. Raises `ConfigurationError` for anything else."""
    if orientation != HEADER:
        try:
            check_code(orientation)
        except ConfigurationError as error:
            raise ConfigurationError(f"--orientation: {error}, or `{HEADER}`") from error
    return STORED if orientation == LPS else orientation


def rank_place(name: VolumeName, path: str, version: Storage) -> int | None:
    """Rank of a place of a volume, the best first. None for a file of the other version.

    The best is CT-RATE's own path, then its last three folders, then any other folder, and a folder of masks.
    """
    if path == str(name.path(version)):
        return 0
    place = f"/{_without_suffix(path.lower())}"
    found = next((known for known in VERSIONS if place.endswith(_place_in_layout(name, known))), None)
    if any(word in place.rpartition("/")[0] for word in MASK_WORDS):
        return 3
    if found is None:
        return 2
    return 1 if found == version else None


def lies_in_layout(name: VolumeName, path: str, version: Storage) -> bool:
    """True if a volume's folders are those that CT-RATE has for a version."""
    return rank_place(name, path, version) in (0, 1)


def judge_version(candidates: Sequence[tuple[Path, dict[str, Any]]]) -> Storage | None:
    """Version by the values of a few volumes, each a file and its row of `volumes`. None if no volume tells.

    v2 files hold HU. Values of v1 files are HU after the rescaling of their row.
    """
    for path, row in candidates[:JUDGED_AT_MOST]:
        spacing_mm = (row["spacing_x_mm"], row["spacing_y_mm"], row["spacing_z_mm"])
        if _are_hu(path, spacing_mm, 1.0, 0.0):
            return "v2"
        if _are_hu(path, spacing_mm, row["rescale_slope"], row["rescale_intercept"]):
            return "v1"
    return None


def _are_hu(path: Path, spacing_mm: tuple[float | None, ...], slope: float | None, intercept: float | None) -> bool:
    from ctclip_model.data.volume import convert_volume  # loads the conversion, which few ingests need

    try:
        convert_volume(path, spacing_mm=spacing_mm, slope=slope, intercept=intercept, recipe=JUDGING)
    except VolumeError:
        return False
    return True


def _place_in_layout(name: VolumeName, version: Storage) -> str:
    """The end of a volume's path in CT-RATE, from the folder of its split on, without the file's suffix."""
    return f"/{_without_suffix(str(name.path(version).relative_to('dataset')))}"


def _without_suffix(path: str) -> str:
    return path.removesuffix(".gz").removesuffix(".nii")
