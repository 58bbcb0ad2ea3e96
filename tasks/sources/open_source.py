"""Opens the source that an address names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from ctclip_model.data.names import Storage
from ctclip_model.data.npz_axes import ORIENTATION
from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.remote.files import Store
from tasks.settings import LIMITS, Limits
from tasks.sources.address import RAD_CHESTCT, Address, parse_address
from tasks.sources.bucket_source import BucketSource, open_bucket
from tasks.sources.hub_source import HubSource, open_hub
from tasks.sources.local_source import LocalSource
from tasks.sources.rad_chestct import RadChestSource
from tasks.sources.storage import parse_storage
from warehouse import store

Source: TypeAlias = LocalSource | RadChestSource | HubSource | BucketSource


def open_source(
    source: str | None,
    data_root: Path,
    storage: Storage | None,
    orientation: str | None = None,
    revision: str | None = None,
    load_token: Callable[[], str | None] = lambda: None,
) -> Source:
    """Opens a source: the one at the address `source`, or else the one that was ingested last.

    `source` is a folder of CT-RATE as a path or `file://`, `hf://datasets/OWNER/NAME[@REVISION]`, a bucket such as
    `s3://BUCKET/PREFIX`, or `rad-chestct:FOLDER`. Storage, orientation and revision are those of its last ingest where
    they are None. `load_token` returns the Hub's token and is called for a source on the Hub alone. Raises
    `ConfigurationError`.
    """
    given = None if source is None else parse_address(source, revision)
    last, stored = _find_recorded(data_root, given) or (None, None)
    address = given or last
    if address is None:
        raise ConfigurationError("no source has been ingested yet: give one with --source")
    if revision is not None:
        address = parse_address(str(address), revision)
    if address.is_remote:
        if orientation is not None:
            raise ConfigurationError(f"--orientation {orientation}: arrays of {address} are taken as they lie")
        version = storage or (parse_storage(stored)[0] if stored else None)
        if address.is_hub:
            return HubSource(address, data_root, version, load_token())
        return BucketSource(address, data_root, version)
    folder = Path(address.location)
    if address.scheme == RAD_CHESTCT:
        turned = stored.removeprefix("npz-") if stored else ORIENTATION
        return RadChestSource(folder, data_root, orientation or turned)
    return LocalSource(folder, data_root, storage, orientation, stored)


def open_store(address: Address, token: str | None, limits: Limits = LIMITS) -> Store:
    """The store that holds the files of a remote address. `token` is the Hub's."""
    return open_hub(address, token, limits) if address.is_hub else open_bucket(address, limits)


def _find_recorded(data_root: Path, given: Address | None) -> tuple[Address, str] | None:
    """Address and storage of the given source's last ingest, or of the last ingest of any source.

    Older versions recorded a link under the name of its target.
    """
    sql = (
        "select source, requested_revision, storage from current_sources "
        "where source in (select unnest($names)) or $names is null "
        "order by source = $names[1] desc, run_id desc limit 1"
    )
    names = None
    if given is not None:
        names = [str(given), str(replace(given, location=os.path.realpath(given.location)))]
    try:
        rows = store.query(data_root, sql, {"names": names})
    except MissingInputError:
        return None  # an empty data root
    return (parse_address(rows[0][0], rows[0][1]), rows[0][2]) if rows else None
