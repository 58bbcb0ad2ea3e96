"""State of an unfinished training, `<model folder>.work/state`: checkpoints, tokenizer and the curve so far.

The state stays until the model is recorded. A training that is killed before continues from it when called again.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

REMOVED_PREFIX = ".state.removed-"


def work_folder(folder: Path) -> Path:
    """The folder beside a model folder that holds its training's manifest, job and state."""
    return folder.with_name(f"{folder.name}.work")


def state_folder(folder: Path) -> Path:
    """The state folder of a model folder's training."""
    return work_folder(folder) / "state"


def has_state(folder: Path) -> bool:
    """True while a training has begun and its model is not recorded, or while its state is not discarded."""
    return state_folder(folder).exists()


def is_finished(folder: Path) -> bool:
    """True if a model folder is newer than the state of its training: the training has ended in that folder."""
    weights, state = folder / "model.safetensors", state_folder(folder)
    if not weights.exists() or not state.exists():
        return False
    newest = max((path.stat().st_mtime_ns for path in state.rglob("*")), default=0)
    return weights.stat().st_mtime_ns > newest


def discard_state(folder: Path) -> None:
    """Drops the state by one rename: from half a state a rerun would make another model."""
    state = state_folder(folder)
    if state.exists():
        state.rename(state.with_name(f"{REMOVED_PREFIX}{uuid.uuid4().hex}"))
    for removed in work_folder(folder).glob(f"{REMOVED_PREFIX}*"):
        shutil.rmtree(removed, ignore_errors=True)
