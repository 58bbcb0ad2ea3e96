"""What a training goes on from, `<model folder>.work/state`: checkpoints, tokenizer and curve so far.

It is there until the model is recorded: killed at any moment before, the same call goes on from it.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def work_of(folder: Path) -> Path:
    """The folder beside a model's."""
    return folder.with_name(f"{folder.name}.work")


def state_of(folder: Path) -> Path:
    """Where the training of a model's folder keeps what it goes on from."""
    state = work_of(folder) / "state"
    state.mkdir(parents=True, exist_ok=True)
    return state


def discard_state(folder: Path) -> None:
    """Drops it, all at once: of half of it a rerun would make another model."""
    state, leaving = work_of(folder) / "state", work_of(folder) / ".state.removed"
    shutil.rmtree(leaving, ignore_errors=True)
    if state.exists():
        state.rename(leaving)
        shutil.rmtree(leaving)
