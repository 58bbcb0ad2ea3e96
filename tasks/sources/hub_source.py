"""CT-RATE on the Hugging Face Hub, read at one commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ctclip_model.data.names import Storage, VolumeName
from ctclip_model.data.phantom import MARKER
from tasks.hub.files import HubFile, fetch, list_files, resolve
from tasks.hub.requests import Repository
from tasks.settings import LIMITS, PHANTOM, Limits
from tasks.sources.address import Address
from tasks.sources.catalogue import Catalogue, FileFacts, build_catalogue
from tasks.sources.tables import LABELS, METADATA, NO_CHEST, REPORTS


class HubSource:
    """Reads CT-RATE from the Hub: downloads its tables into `raw/` and asks for the size and hash of its volumes.

    `storage` is v1 or v2, or None for v2, and v1 if the repository holds no v2.
    """

    def __init__(
        self, address: Address, data_root: Path, storage: Storage | None = None, token: str | None = None,
        limits: Limits = LIMITS,
    ) -> None:  # fmt: skip
        self.name = self.former_name = str(address)
        self.storage: Storage = storage or "v2"
        self.is_storage_open = storage is None
        self.requested_revision: str | None = address.revision or "main"
        self.kind = "ct-rate"
        self.repository = Repository(address.repo_id, "dataset", address.revision or "main", token)
        self.folder = data_root / "raw"
        self.limits = limits

    def read(self) -> tuple[str, Catalogue]:
        """Resolves the revision to a commit. Returns the commit and its catalogue. Raises `HubError`."""
        self.repository = resolve(self.repository, self.limits)
        paths = [path for group in (METADATA, REPORTS, LABELS, NO_CHEST) for path in group.values()]
        tables = list_files(self.repository, [*paths, MARKER], self.limits)
        if MARKER in tables:
            self.kind = PHANTOM
        contents = {path: self._content(tables.get(path)) for path in paths}
        catalogue = build_catalogue(contents, self._facts, self.storage)
        if self.is_storage_open and not catalogue.count_files()[0]:
            self.storage = "v1"
            older = build_catalogue(contents, self._facts, self.storage)
            if older.count_files()[0]:
                return self.repository.revision, older
            self.storage = "v2"
        return self.repository.revision, catalogue

    def find_unchanged_revision(self) -> str | None:
        """The commit that the revision names now. The rows of a commit never change."""
        self.repository = resolve(self.repository, self.limits)
        return self.repository.revision

    def _content(self, file: HubFile | None) -> bytes | None:
        if file is None:
            return None
        fetch(self.repository, file, self.folder, limits=self.limits)
        return (self.folder / file.path).read_bytes()

    def _facts(self, names: list[VolumeName]) -> Mapping[VolumeName, FileFacts]:
        paths = {name: str(name.path(self.storage)) for name in names}
        files = list_files(self.repository, paths.values(), self.limits)
        found = {name: files[path] for name, path in paths.items() if path in files}
        # a volume kept in git itself has no SHA-256 to check a download with (CT-RATE has no such volume)
        return {name: FileFacts(file.path, file.size_bytes, file.sha256) for name, file in found.items() if file.sha256}
