"""Fingerprints with the parts that they were made from, so that a plan can name the part that changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ctclip_model.config import compute_fingerprint

LONGEST_SHOWN = 40  # characters; longer parts are hashed
VERSION = "version"  # name of the part that holds the stage's VERSION


class Fingerprint(str):
    """A fingerprint with its parts by name, as text, or hashed if long.

    The parts are for explanations only. Decisions compare fingerprints.
    """

    parts: dict[str, str]

    def __new__(cls, digest: str, parts: Mapping[str, Any] | None = None) -> Fingerprint:
        fingerprint = super().__new__(cls, digest)
        fingerprint.parts = {name: _shorten(value) for name, value in (parts or {}).items()}
        return fingerprint


def get_parts(fingerprint: str) -> dict[str, str] | None:
    """Parts of a `Fingerprint`, or None for a plain string or a fingerprint without parts."""
    return fingerprint.parts if isinstance(fingerprint, Fingerprint) and fingerprint.parts else None


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
