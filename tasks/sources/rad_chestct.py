"""RAD-ChestCT for external evaluation: a folder of `trn00001.npz` and so on, with `rad_chestct_labels.csv`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import EXTERNAL, RAD_FILE, RadName, parse_rad_name
from ctclip_model.data.npz_axes import ORIENTATION, SPACING_MM, parse_orientation
from ctclip_model.errors import BadItemError, ConfigurationError, MetadataError
from tasks.sources.address import RAD_CHESTCT
from tasks.sources.catalogue import Catalogue, FileFacts
from tasks.sources.folder_source import FolderSource
from tasks.sources.tables import label_value, read_rows

LABELS = "rad_chestct_labels.csv"  # one column for each of CT-RATE's abnormalities that RAD-ChestCT has
NAME_COLUMN = "NoteAcc_DEID"


class RadChestSource(FolderSource[RadName]):
    """Reads RAD-ChestCT from a folder. Its table of labels lists the scans. It has no reports."""

    scheme = kind = RAD_CHESTCT

    def __init__(self, folder: Path, data_root: Path, orientation: str = ORIENTATION) -> None:
        try:
            parse_orientation(orientation)
        except ValueError as error:
            raise ConfigurationError(f"--orientation: {error}") from error
        super().__init__(folder, data_root, [LABELS], RAD_FILE)
        self.orientation = orientation
        if LABELS not in self.listing.tables:
            raise ConfigurationError(
                f"{self.folder} holds no {LABELS}, which lists the scans of RAD-ChestCT. "
                f"There: {self.describe_contents(Catalogue())}"
            )

    @property
    def storage(self) -> str:
        return f"npz-{self.orientation}"

    def _read_catalogue(self) -> tuple[str, Catalogue]:
        content = self._content(LABELS)
        catalogue = Catalogue()
        rows: dict[RadName, dict[str, int]] = {}
        try:
            text = (content or b"").decode("utf-8-sig", errors="replace")
            for line, cells in read_rows(LABELS, text, (NAME_COLUMN,)):
                try:
                    _add_row(rows, f"{LABELS}:{line}", cells)
                except BadItemError as error:
                    catalogue.errors.append(error)
        except MetadataError as error:
            catalogue.errors.append(error)
            catalogue.unreadable.append(LABELS)
        facts = self._facts(list(rows))
        catalogue.volumes = [_volume_row(name, facts.get(name), self.storage) for name in rows]
        for name, values in rows.items():
            fingerprint = compute_fingerprint(values, VERSIONS["ingest"])
            label = {"scan_id": str(name), "is_disputed": False, "fingerprint": fingerprint}
            catalogue.published_labels[str(name)] = [
                label | {"abnormality": abnormality, "value": value} for abnormality, value in values.items()
            ]
        files = [[row["path"], row["sha256"]] for row in catalogue.volumes]
        table = hashlib.sha256(content or b"-").hexdigest()
        return compute_fingerprint(self.storage, table, files), catalogue

    def _rank(self, name: RadName, path: str) -> int | None:
        return int(path != str(name.path()))


def _add_row(rows: dict[RadName, dict[str, int]], location: str, cells: dict[str, str]) -> None:
    if not cells:
        raise MetadataError(location, "malformed_row", "has another number of cells than the header")
    name = parse_rad_name(cells[NAME_COLUMN])
    if name in rows:
        raise MetadataError(location, "duplicate_row", f"{name} stands there twice")
    known = [abnormality for abnormality in ABNORMALITIES if abnormality in cells]
    rows[name] = {abnormality: label_value(f"{location} {name}", abnormality, cells) for abnormality in known}


def _volume_row(name: RadName, file: FileFacts | None, storage: str) -> dict[str, Any]:
    row = {
        "volume_name": str(name), "scan_id": str(name), "patient_id": str(name), "split": EXTERNAL,
        "spacing_x_mm": SPACING_MM[0], "spacing_y_mm": SPACING_MM[1], "spacing_z_mm": SPACING_MM[2],
        "metadata": {"dataset": "RAD-ChestCT"}, "storage": storage, "path": file.path if file else str(name.path()),
        "size_bytes": file.size_bytes if file else None, "sha256": file.sha256 if file else None,
    }  # fmt: skip
    return row | {"fingerprint": compute_fingerprint(list(map(str, row.values())), VERSIONS["ingest"])}
