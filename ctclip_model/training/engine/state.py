"""State of an unfinished training, `<model folder>.work/state`: checkpoints, tokenizer and the curve so far.

The state stays until the model is recorded. A training that is killed before continues from it when called again.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from ctclip_model.errors import ConfigurationError

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


def keep_precision(folder: Path, precision: str, *, writes: bool) -> None:
    """Records the precision in which a training begins, before its first checkpoint.

    `folder` is the model folder, `writes` is true in the first process. Raises `ConfigurationError` for a training
    that goes on from a checkpoint of another precision: no record could say which steps had which.
    """
    state = state_folder(folder)
    path = state / "precision.txt"
    if any(state.glob("*/step-*")):
        began = path.read_text(encoding="ascii") if path.exists() else precision
        if began != precision:
            raise ConfigurationError(
                f"{folder.name} is half trained in {began} and does not go on in {precision}: run it with --dtype "
                f"{began}, or delete {state} to begin anew"
            )
    elif writes:
        state.mkdir(parents=True, exist_ok=True)
        path.write_text(precision, encoding="ascii")


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
