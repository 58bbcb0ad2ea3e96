"""The source that an address names."""

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
    """The source that an address names; by default the one ingested last, at the revision that was asked for then.

    CT-RATE is a folder, as a path or `file://`, or `hf://datasets/OWNER/NAME[@REVISION]`; RAD-ChestCT is
    `rad-chestct:FOLDER`. `load_token` gives the Hub's token and is called for a source on the Hub alone.
    """
    given = None if source is None else parse_address(source, revision)
    last, stored = _recorded_source(data_root, given) or (None, None)
    address = given or last
    if address is None:
        raise ConfigurationError("no source has been ingested yet: say which with --source")
    if revision is not None:
        address = parse_address(str(address), revision)
    folder, known = Path(address.place), storage or ("v1" if stored == "v1" else "v2")
    if address.is_hub:
        return HubSource(address, data_root, known, load_token())
    if address.scheme == RAD_CHESTCT:
        turned = stored.removeprefix("npz-") if stored else ORIENTATION
        return RadChestSource(folder, data_root, orientation or turned)
    return LocalSource(folder, data_root, known)


def _recorded_source(data_root: Path, given: Address | None) -> tuple[Address, str] | None:
    try:
        with store.read(data_root) as connection:
            row = connection.execute(
                "select source, requested_revision, storage from current_sources "
                "where source = coalesce(?, source) order by run_id desc",
                [given and str(given)],
            ).fetchone()
    except MissingInputError:
        return None
    return row and (parse_address(row[0], row[1]), row[2])
