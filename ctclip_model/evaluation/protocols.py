"""Named protocols of the literature: which items of CT-RATE's validation split a publication scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ctclip_model.errors import ConfigurationError


@dataclass(frozen=True)
class NamedProtocol:
    """Unit of an item, and whether only retrieval is scored. The view `protocol_volumes` has the rows."""

    unit: str  # scan (mean over its reconstructions) or volume
    is_retrieval: bool = False


PUBLISHED = "published"  # a row per reconstruction, excluded ones too; thresholds from the scored labels
NAMED_PROTOCOLS = {
    PUBLISHED: NamedProtocol("volume"),
    "scans-1564": NamedProtocol("scan"),
    "scans-1551": NamedProtocol("scan"),
    "volumes-3002": NamedProtocol("volume"),
    "pairs-1493": NamedProtocol("volume", is_retrieval=True),
}
NAMED_SPLIT = "valid"  # the split that all but the published protocol choose from
ON_REQUEST = tuple(name for name in NAMED_PROTOCOLS if name != PUBLISHED)


def check_protocols(names: Iterable[str]) -> None:
    """Raises `ConfigurationError` for a name that is no protocol's."""
    if unknown := sorted({*names} - NAMED_PROTOCOLS.keys()):
        raise ConfigurationError(f"there is no protocol {unknown[0]!r}: choose from {', '.join(NAMED_PROTOCOLS)}")
