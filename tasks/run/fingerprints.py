"""Fingerprints that know what they were made from, so that a plan can say which part of it has moved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ctclip_model.config import compute_fingerprint

LONGEST_SHOWN = 40  # characters; of what is longer its hash is kept
VERSION = "version"  # the part that is the stage's VERSION


class Fingerprint(str):
    """A fingerprint, and its parts by name: as text where that is short, else hashed.

    The parts are told and never compared to decide anything: that is for the fingerprint.
    """

    parts: dict[str, str]

    def __new__(cls, digest: str, parts: Mapping[str, Any] | None = None) -> Fingerprint:
        fingerprint = super().__new__(cls, digest)
        fingerprint.parts = {name: _shorten(value) for name, value in (parts or {}).items()}
        return fingerprint


def get_parts(fingerprint: str) -> dict[str, str] | None:
    """The parts of a fingerprint that knows them."""
    return fingerprint.parts if isinstance(fingerprint, Fingerprint) and fingerprint.parts else None


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of nested mappings, such as `training.seed`."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        inner = flatten(value) if isinstance(value, Mapping) else None
        leaves |= {name: value} if inner is None else {f"{name}.{key}": leaf for key, leaf in inner.items()}
    return leaves


def find_moved(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The parts that differ, each as it was and as it is."""
    names = dict.fromkeys([*before, *now])
    return {name: (before.get(name, ""), now.get(name, "")) for name in names if before.get(name) != now.get(name)}


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= LONGEST_SHOWN else compute_fingerprint(text)[:12]
