"""Folders that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]  # the repository
GOLDEN = ROOT / "tests" / "golden"  # outputs of the published model
SHARED = ROOT.parent / "shared"  # real public data beside the repository, absent from a plain clone
