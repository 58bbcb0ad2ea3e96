"""Opens the source that an address names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from ctclip_model.data.names import Storage
from ctclip_model.data.npz import ORIENTATION
from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.sources.address import RAD_CHESTCT, Address, parse_address
from tasks.sources.hub_source import HubSource
from tasks.sources.local_source import LocalSource
from tasks.sources.rad_chestct import RadChestSource
from warehouse import store

Source: TypeAlias = LocalSource | HubSource


def open_source(
    source: str | None,
    data_root: Path,
    storage: Storage | None,
    orientation: str | None = None,
    revision: str | None = None,
    load_token: Callable[[], str | None] = lambda: None,
) -> Source:
    """Opens a source: the one at the address `source`, or else the one that was ingested last.

    `source` is a folder of CT-RATE as a path or `file://`, `hf://datasets/OWNER/NAME[@REVISION]`, or
    `rad-chestct:FOLDER`. Storage, orientation and revision are those of its last ingest where they are None.
    `load_token` returns the Hub's token and is called for a source on the Hub alone. Raises `ConfigurationError`.
    """
    given = None if source is None else parse_address(source, revision)
    last, stored = _find_recorded(data_root, given) or (None, None)
    address = given or last
    if address is None:
        raise ConfigurationError("no source has been ingested yet: give one with --source")
    if revision is not None:
        address = parse_address(str(address), revision)
    folder, known = Path(address.location), storage or ("v1" if stored == "v1" else "v2")
    if address.is_hub:
        return HubSource(address, data_root, known, load_token())
    if address.scheme == RAD_CHESTCT:
        turned = stored.removeprefix("npz-") if stored else ORIENTATION
        return RadChestSource(folder, data_root, orientation or turned)
    return LocalSource(folder, data_root, known)


def _find_recorded(data_root: Path, given: Address | None) -> tuple[Address, str] | None:
    """Address and storage of the given source's last ingest, or of the last ingest of any source."""
    sql = (
        "select source, requested_revision, storage from current_sources where source = coalesce(?, source) "
        "order by run_id desc limit 1"
    )
    try:
        rows = store.query(data_root, sql, [given and str(given)])
    except MissingInputError:
        return None  # an empty data root
    return (parse_address(rows[0][0], rows[0][1]), rows[0][2]) if rows else None
