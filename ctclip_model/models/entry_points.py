"""Installed encoders of other packages, found by their entry points. Imports no torch, and nothing of the packages.

A package declares an encoder as an entry point of the group `ctclip.encoders`. Nothing else is ever run: neither code
in a model folder nor a module that a model folder names.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points

from ctclip_model.config import ENCODER_NAME
from ctclip_model.errors import EncoderError, MissingInputError

GROUP = "ctclip.encoders"


def list_encoders() -> dict[str, str]:
    """The installed encoders, as {name: package and version}. Imports none of them."""
    found: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        found[point.name] = ", ".join(filter(None, (found.get(point.name), " ".join(describe_package(point)))))
    return found


def find_entry_point(name: str, package: str | None = None) -> EntryPoint:
    """The entry point of an encoder, of any package or of the named one. Imports nothing of it.

    Raises `MissingInputError` if it is not installed, and `EncoderError` if several packages declare it.
    """
    points = [
        point
        for point in entry_points(group=GROUP, name=name)
        if package is None or _normal(describe_package(point)[0]) == _normal(package)
    ]
    if not points:
        raise MissingInputError(_describe_absent(name, package))
    packages = sorted({describe_package(point)[0] for point in points})
    if len(packages) > 1:
        raise EncoderError(f"the encoder {name!r} is declared by {' and '.join(packages)}: uninstall all except one")
    return points[0]


def find_fault(name: str, package: str | None = None) -> str | None:
    """A sentence on an encoder that cannot be opened here, or None."""
    try:
        find_entry_point(name, package)
    except (MissingInputError, EncoderError) as error:
        return str(error)
    return None


def describe_package(point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that declares an entry point."""
    return (point.dist.name, point.dist.version) if point.dist is not None else ("unknown", "0")


def _describe_absent(name: str, package: str | None) -> str:
    if package is not None:
        others = [describe_package(point)[0] for point in entry_points(group=GROUP, name=name)]
        renamed = f". If {' or '.join(others)} is its new name, import the encoder again" if others else ""
        return f"the encoder {name!r} is not installed: if you trust its package, pip install {package}{renamed}"
    known = ", ".join(list_encoders()) or "none"
    shown = name if ENCODER_NAME.fullmatch(name) else repr(name)
    return f"no installed package declares the encoder {shown} (installed encoders: {known})"


def _normal(package: str) -> str:
    """Name of a package as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", package).lower()
