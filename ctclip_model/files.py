"""What makes a written file last."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Makes a file's content, or a rename within a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
