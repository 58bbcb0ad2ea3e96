"""CT-RATE where its files are downloaded before they are read: on the Hub or in a bucket."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from ctclip_model.data.names import Storage, VolumeName
from ctclip_model.data.phantom import MARKER
from tasks.remote.fetch import fetch
from tasks.remote.files import RemoteFile, Store
from tasks.settings import LIMITS, PHANTOM, Limits
from tasks.sources.address import Address
from tasks.sources.catalogue import Catalogue, FileFacts, build_catalogue
from tasks.sources.tables import LABELS, METADATA, NO_CHEST, REPORTS

TABLES = [path for group in (METADATA, REPORTS, LABELS, NO_CHEST) for path in group.values()]


class RemoteSource(ABC):
    """Reads CT-RATE from a store: downloads its tables into `raw/` and asks for the facts of its volumes.

    `storage` is v1 or v2, or None for v2, and v1 if the store holds no v2.
    """

    requested_revision: str | None = None
    store: Store

    def __init__(
        self, address: Address, data_root: Path, storage: Storage | None = None, limits: Limits = LIMITS
    ) -> None:
        self.name = self.former_name = str(address)
        self.storage: Storage = storage or "v2"
        self.is_storage_open = storage is None
        self.kind = "ct-rate"
        self.folder = data_root / "raw"
        self.limits = limits

    @abstractmethod
    def read(self) -> tuple[str, Catalogue]:
        """Reads tables and facts, and returns the revision and its catalogue. Raises `RemoteError`."""

    @abstractmethod
    def find_unchanged_revision(self) -> str | None:
        """The revision that the source has now, if that is known without reading it."""

    def _read_catalogue(self) -> Catalogue:
        """Downloads the tables and builds the catalogue. Raises `RemoteError`."""
        self.tables = self.store.find_files([*TABLES, MARKER])
        if MARKER in self.tables:
            self.kind = PHANTOM
        contents = {path: self._content(self.tables.get(path)) for path in TABLES}
        catalogue = build_catalogue(contents, self._facts, self.storage)
        if self.is_storage_open and not catalogue.count_files()[0]:
            self.storage = "v1"
            older = build_catalogue(contents, self._facts, self.storage)
            if older.count_files()[0]:
                return older
            self.storage = "v2"
        return catalogue

    def _content(self, file: RemoteFile | None) -> bytes | None:
        if file is None:
            return None
        fetch(self.store, file, self.folder)
        return (self.folder / file.path).read_bytes()

    def _facts(self, names: list[VolumeName]) -> Mapping[VolumeName, FileFacts]:
        paths = {name: str(name.path(self.storage)) for name in names}
        files = self.store.find_files(paths.values())
        found = {name: file for name, path in paths.items() if (file := files.get(path)) and self._is_usable(file)}
        return {name: FileFacts(file.path, file.size_bytes, file.sha256, file.checksum) for name, file in found.items()}

    def _is_usable(self, file: RemoteFile) -> bool:
        """True if a download of the volume's file can be checked."""
        return True
