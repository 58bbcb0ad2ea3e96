"""CT-RATE in a bucket, below a prefix that holds its layout: `PREFIX/dataset/metadata/…`."""

from __future__ import annotations

from pathlib import Path

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.names import Storage
from tasks.remote.bucket import Bucket
from tasks.settings import LIMITS, Limits
from tasks.sources.address import Address
from tasks.sources.catalogue import Catalogue
from tasks.sources.remote_source import RemoteSource


class BucketSource(RemoteSource):
    """Reads CT-RATE from a bucket. The revision is a fingerprint of what the bucket says of tables and volumes."""

    store: Bucket

    def __init__(
        self, address: Address, data_root: Path, storage: Storage | None = None, limits: Limits = LIMITS
    ) -> None:
        super().__init__(address, data_root, storage, limits)
        self.store = open_bucket(address, limits)

    def read(self) -> tuple[str, Catalogue]:
        """Reads tables and facts. Raises `RemoteError`, also for a bucket or prefix that is not there."""
        catalogue = self._read_catalogue()
        if not self.tables:
            self.store.require_reachable()
        tables = sorted([path, file.content_id] for path, file in self.tables.items())
        volumes = [[row["path"], row["sha256"] or row.get("checksum")] for row in catalogue.volumes]
        return compute_fingerprint(self.storage, tables, volumes), catalogue

    def find_unchanged_revision(self) -> None:
        """None: a bucket tells of a change by the facts of its objects alone."""


def open_bucket(address: Address, limits: Limits = LIMITS) -> Bucket:
    """The store of an address in a bucket. Asks for nothing yet. Raises `ConfigurationError`."""
    return Bucket(address.scheme, address.location, limits)
