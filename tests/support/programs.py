"""Shell programs that stand in for those of a cluster or of a root user."""

from __future__ import annotations

import os
from pathlib import Path


def write_program(folder: Path, name: str, script: str) -> None:
    """Writes an executable Bash script of that name."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/usr/bin/env bash\n{script}\n")
    program.chmod(0o755)


def prepend_path(folder: Path, environment: dict[str, str] | None = None) -> dict[str, str]:
    """An environment with a folder first on PATH."""
    environment = environment or dict(os.environ)
    return environment | {"PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
