"""What a training goes on from, `<model folder>.work/state`: checkpoints, tokenizer and curve so far.

It is there until the model is recorded: killed at any moment before, the same call goes on from it.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

LEAVING = ".state.removed-"


def work_of(folder: Path) -> Path:
    """The folder beside a model's."""
    return folder.with_name(f"{folder.name}.work")


def state_of(folder: Path) -> Path:
    """Where the training of a model's folder keeps what it goes on from."""
    state = work_of(folder) / "state"
    state.mkdir(parents=True, exist_ok=True)
    return state


def has_state(folder: Path) -> bool:
    """Whether a training has begun that nobody has recorded, or of which something was left."""
    return (work_of(folder) / "state").exists()


def is_finished(folder: Path) -> bool:
    """Whether a model's folder is newer than all that its training goes on from, and so what that came to."""
    weights, state = folder / "model.safetensors", work_of(folder) / "state"
    if not weights.exists() or not state.exists():
        return False
    newest = max((path.stat().st_mtime_ns for path in state.rglob("*")), default=0)
    return weights.stat().st_mtime_ns > newest


def discard_state(folder: Path) -> None:
    """Drops it, all at once: of half of it a rerun would make another model."""
    state = work_of(folder) / "state"
    if state.exists():
        state.rename(state.with_name(f"{LEAVING}{uuid.uuid4().hex}"))
    for leaving in work_of(folder).glob(f"{LEAVING}*"):
        shutil.rmtree(leaving, ignore_errors=True)
