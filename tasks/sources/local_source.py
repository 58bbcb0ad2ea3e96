"""CT-RATE in a folder, on this machine or on a shared file system, complete or not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.names import STORED, Storage, VolumeName, parse_volume_name
from ctclip_model.data.phantom import MARKER
from ctclip_model.errors import ConfigurationError
from tasks.settings import PHANTOM
from tasks.sources.address import FOLDER
from tasks.sources.catalogue import SPLITS, Catalogue, build_catalogue
from tasks.sources.folder_source import FolderSource
from tasks.sources.storage import (
    VERSIONS,
    check_orientation,
    format_storage,
    judge_version,
    lies_in_layout,
    parse_storage,
    rank_place,
)
from tasks.sources.tables import LABELS, METADATA, NO_CHEST, REPORTS, read_table, volume_row

TABLES = [path for group in (METADATA, REPORTS, LABELS, NO_CHEST) for path in group.values()]


class LocalSource(FolderSource[VolumeName]):
    """Reads CT-RATE from a folder.

    `version` and `orientation` are those of the last ingest (`recorded`, a storage) where they are None. Without an
    ingest the version is the one that the folder holds, and arrays are taken as they lie.
    """

    scheme = FOLDER

    def __init__(
        self, folder: Path, data_root: Path, version: Storage | None = None, orientation: str | None = None,
        recorded: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(folder, data_root, [*TABLES, MARKER])
        self._given, self._recorded = version, recorded and parse_storage(recorded)
        known = self._recorded[1] if self._recorded else STORED
        self.orientation = known if orientation is None else check_orientation(orientation)
        self._refuse_other_folders()

    def _refuse_other_folders(self) -> None:
        tables = [path for path in TABLES if Path(path).name in self.listing.tables]
        if not tables:
            missing = "no table of CT-RATE" if self.listing.volumes else "neither a table nor a volume of CT-RATE"
            raise ConfigurationError(
                f"{self.folder} holds {missing}: looked for validation_metadata.csv, train_reports.csv and the others, "
                f"and for names such as valid_1_a_1.nii.gz, in every folder of it. "
                f"There: {self.describe_contents(Catalogue())}"
            )

    @property
    def kind(self) -> str:
        """Name of the data set in the warehouse. Phantoms never pass for CT-RATE."""
        return PHANTOM if MARKER.lower() in self.listing.tables else "ct-rate"

    @property
    def storage(self) -> str:
        return format_storage(self.version, self.orientation)

    @cached_property
    def version(self) -> Storage:
        """Version of the volumes: as given, as last time if there are such files, or as the folders or values tell."""
        if self._given is not None:
            return self._given
        likely = self._recorded[0] if self._recorded else "v2"
        for version in sorted(VERSIONS, key=lambda version: version != likely):
            if any(lies_in_layout(parse_volume_name(name), path, version) for name, path in self._list_paths()):
                return version
        return likely if self._recorded else judge_version(self._list_samples()) or likely

    def _read_catalogue(self) -> tuple[str, Catalogue]:
        contents = {path: self._content(path) for path in TABLES}
        catalogue = build_catalogue(contents, self._facts, self.storage)
        hashes = [[path, hashlib.sha256(content or b"-").hexdigest()] for path, content in contents.items()]
        files = [[row["path"], row["sha256"]] for row in catalogue.volumes]
        return compute_fingerprint(self.storage, hashes, files), catalogue

    def _list_paths(self) -> Iterator[tuple[str, str]]:
        return ((name, file.path) for name, files in self.listing.volumes.items() for file in files)

    def _rank(self, name: VolumeName, path: str) -> int | None:
        return rank_place(name, path, self.version)

    def _list_samples(self) -> list[tuple[Path, dict[str, Any]]]:
        """A few volumes with their rows of the metadata, to judge the version by."""
        samples = []
        for split in SPLITS:
            table = read_table(METADATA[split], self._content(METADATA[split]), split, ("XYSpacing", "ZSpacing"))
            for name, cells in table.rows.items():
                files = self.listing.volumes.get(str(name), ())
                samples += [(self.target / file.path, volume_row(name, cells)) for file in files[:1]]
        return samples
