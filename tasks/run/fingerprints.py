"""Fingerprints with the parts that they were made from, so that a plan can name the part that changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ctclip_model.config import compute_fingerprint

LONGEST_SHOWN = 40  # characters; longer parts are hashed
VERSION = "version"  # name of the part that holds the stage's VERSION


class Fingerprint(str):
    """A fingerprint with its parts by name, as text, or hashed if long.

    The parts are for explanations only. Decisions compare fingerprints. Most fingerprints are never explained, so a
    part becomes text once somebody asks.
    """

    given: Mapping[str, Any]

    def __new__(cls, digest: str, parts: Mapping[str, Any] | None = None) -> Fingerprint:
        fingerprint = super().__new__(cls, digest)
        fingerprint.given = parts or {}
        return fingerprint

    @cached_property
    def parts(self) -> dict[str, str]:
        return {name: _shorten(value) for name, value in self.given.items()}


def has_parts(fingerprint: str) -> bool:
    """True if `get_parts` has parts."""
    return isinstance(fingerprint, Fingerprint) and bool(fingerprint.given)


def get_parts(fingerprint: str) -> dict[str, str] | None:
    """Parts of a `Fingerprint`, or None for a plain string or a fingerprint without parts."""
    return fingerprint.parts if isinstance(fingerprint, Fingerprint) and fingerprint.given else None


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of nested mappings by dotted name, such as `training.seed`."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        inner = flatten(value) if isinstance(value, Mapping) else None
        leaves |= {name: value} if inner is None else {f"{name}.{key}": leaf for key, leaf in inner.items()}
    return leaves


def find_moved(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Parts that differ, as {name: (before, now)}."""
    names = dict.fromkeys([*before, *now])
    return {name: (before.get(name, ""), now.get(name, "")) for name in names if before.get(name) != now.get(name)}


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= LONGEST_SHOWN else compute_fingerprint(text)[:12]
