"""CT-RATE on the Hugging Face Hub, read at one commit."""

from __future__ import annotations

from pathlib import Path

from ctclip_model.data.names import Storage
from tasks.hub.files import HubStore, resolve
from tasks.hub.requests import Repository
from tasks.remote.files import RemoteFile
from tasks.settings import LIMITS, Limits
from tasks.sources.address import Address
from tasks.sources.catalogue import Catalogue
from tasks.sources.remote_source import RemoteSource


class HubSource(RemoteSource):
    """Reads CT-RATE from the Hub. The revision is a commit."""

    store: HubStore

    def __init__(
        self, address: Address, data_root: Path, storage: Storage | None = None, token: str | None = None,
        limits: Limits = LIMITS,
    ) -> None:  # fmt: skip
        super().__init__(address, data_root, storage, limits)
        self.store = open_hub(address, token, limits)
        self.requested_revision = address.revision or "main"

    def read(self) -> tuple[str, Catalogue]:
        """Resolves the revision to a commit. Returns the commit and its catalogue. Raises `HubError`."""
        commit = self.find_unchanged_revision()
        return commit, self._read_catalogue()

    def find_unchanged_revision(self) -> str:
        """The commit that the revision names now. The rows of a commit never change."""
        self.store = HubStore(resolve(self.store.repository, self.limits), self.limits)
        return self.store.repository.revision

    def _is_usable(self, file: RemoteFile) -> bool:
        """False for a volume kept in git itself, which has no SHA-256. CT-RATE has no such volume."""
        return file.sha256 is not None


def open_hub(address: Address, token: str | None, limits: Limits = LIMITS) -> HubStore:
    """The store of a data set on the Hub. Asks for nothing yet."""
    return HubStore(Repository(address.repo_id, "dataset", address.revision or "main", token), limits)
