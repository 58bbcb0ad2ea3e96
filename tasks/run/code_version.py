"""Version of the running code. Imports no package, so that `ctclip --version` needs none."""

from __future__ import annotations

import functools
import subprocess
from importlib import metadata
from pathlib import Path


@functools.cache
def code_version() -> str:
    """Commit of the checkout, or version of the installed package."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return metadata.version("ctclip-rebuild")
    return described.stdout.strip()
