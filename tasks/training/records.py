"""Models that earlier runs have trained: found by fingerprint, stale, or being trained again."""

from __future__ import annotations

from pathlib import Path

from ctclip_model.files import sha256_of
from tasks.run.lost import is_there
from warehouse import store


def find_trained(data_root: Path, fingerprint: str) -> str | None:
    """The newest model of a configuration, by the fingerprint of the configuration and its seed.

    None: there is no model yet, or its folder is lost.
    """
    sql = "select model_id, path from current_models where fingerprint = ? order by run_id desc limit 1"
    rows = store.query(data_root, sql, [fingerprint])
    return rows[0][0] if rows and is_there(data_root / rows[0][1]) else None


def must_train_again(data_root: Path, fingerprint: str) -> bool:
    """True if the newest model of a fingerprint is lost, or was being trained again."""
    found = _find_folder(data_root, fingerprint)
    return found is not None and (not is_there(found[0]) or is_unfinished(data_root, fingerprint))


def describe_stale(data_root: Path, fingerprint: str) -> str:
    """A sentence on the moved samples of a configuration's model. Empty if none moved, or if there is no model."""
    rows = store.query(data_root, store.load_sql(__package__, "stale"), [fingerprint])
    if not rows:
        return ""
    model_id, count_moved, count = rows[0]
    return f"{model_id} is stale: {count_moved} samples moved of {count}; --retrain trains anew"


def is_unfinished(data_root: Path, fingerprint: str) -> bool:
    """True if the newest model of a fingerprint was being trained again, and the new weights are not recorded."""
    from ctclip_model.training.engine.state import has_state

    folder = _find_folder(data_root, fingerprint)
    return folder is not None and has_state(folder[0]) and not _is_recorded(*folder)


def discard_recorded_state(data_root: Path, fingerprint: str) -> None:
    """Drops the state of a training whose model is recorded: its run died before. Call it only under the lease."""
    from ctclip_model.training.engine.state import discard_state

    folder = _find_folder(data_root, fingerprint)
    if folder is not None and _is_recorded(*folder):
        discard_state(folder[0])


def _find_folder(data_root: Path, fingerprint: str) -> tuple[Path, str] | None:
    """The folder and the recorded weights of the newest model of a fingerprint."""
    sql = "select path, weights_sha256 from current_models where fingerprint = ? order by run_id desc limit 1"
    rows = store.query(data_root, sql, [fingerprint])
    return (data_root / rows[0][0], rows[0][1]) if rows else None


def _is_recorded(folder: Path, weights_sha256: str) -> bool:
    """True if a training has ended in this folder, and its weights are the recorded ones."""
    from ctclip_model.training.engine.state import is_finished

    return is_finished(folder) and sha256_of(folder / "model.safetensors") == weights_sha256
