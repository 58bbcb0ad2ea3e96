"""Records of a training: its steps, its samples and its model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ctclip_model.models.kinds import ModelKind
from tasks.run.progress import show_progress
from tasks.run.records import sha256_of
from tasks.run.stage_run import StageRun, code_version
from warehouse import store

if TYPE_CHECKING:
    from ctclip_model.training.engine.curve import TrainingResult
    from ctclip_model.training.engine.loop import StepRecord
    from ctclip_model.training.worker import Result
from tasks.training.manifest import Manifest

R = TypeVar("R", bound="Result")


STEPS_PER_RECORD = 50


def find_trained(data_root: Path, fingerprint: str) -> str | None:
    """The newest model of the configuration of that fingerprint, its seed included; None if there is none yet."""
    with store.read(data_root) as connection:
        row = connection.execute(
            "select model_id from current_models where fingerprint = ? order by run_id desc limit 1", [fingerprint]
        ).fetchone()
    return row[0] if row else None


def describe_stale(data_root: Path, fingerprint: str) -> str:
    """Says, where the configuration has a model, how far its samples have moved since; empty if they have not."""
    with store.read(data_root) as connection:
        row = connection.execute(
            "select model_id, count_moved_samples, stale_models.count_samples from stale_models join current_models "
            "using (model_id) where fingerprint = ? and is_stale order by run_id desc limit 1",
            [fingerprint],
        ).fetchone()
    if row is None:
        return ""
    return f"{row[0]} is stale: {row[1]} samples moved of {row[2]}; --retrain trains anew"


def is_recorded(run: StageRun, model_id: str) -> bool:
    """Whether another attempt of the same run has made the model and died thereafter; it is counted then."""
    from ctclip_model.training.engine.state import discard_state

    if not run.has_recorded("models", model_id):
        return False
    discard_state(run.data_root / "models" / model_id)
    run.count_done += 1
    return True


def is_unfinished(data_root: Path, fingerprint: str) -> bool:
    """Whether the newest model of that fingerprint was being trained again, and that was not recorded.

    What a training that was recorded has left to go on from is dropped. Only where no training is at work.
    """
    from ctclip_model.training.engine.state import discard_state, has_state, is_finished

    with store.read(data_root) as connection:
        row = connection.execute(
            "select path, weights_sha256 from current_models where fingerprint = ? order by run_id desc limit 1",
            [fingerprint],
        ).fetchone()
    if row is None:
        return False
    folder = data_root / row[0]
    if is_finished(folder) and sha256_of(folder / "model.safetensors") == row[1]:
        discard_state(folder)
    return has_state(folder)


def train_and_record(
    run: StageRun, manifest: Manifest, total: int, train: Callable[[Callable[[StepRecord], None]], R]
) -> R:
    """Trains, on `total` samples at most, shows how far it is, and records each step."""
    steps = StepRecorder(run, manifest)
    seen: dict[str, int] = {}
    with show_progress(run.stage, total, "samples") as progress:

        def on_step(record: StepRecord) -> None:
            steps.add(record)
            seen[record.phase] = record.samples
            progress.advance(sum(seen.values()) - progress.done, f"{record.phase}, loss {record.loss:.3f}")

        try:
            result = train(on_step)
        finally:
            steps.flush()  # what a rerun does not do again
    steps.complete(result.folder / "metrics.parquet")
    return result


def record_model(
    run: StageRun,
    manifest: Manifest,
    result: TrainingResult,
    *,
    kind: ModelKind,
    preset: str,
    config: Mapping[str, Any],
    recipe_id: str,
    duration_s: float,
    parent_model_id: str | None = None,
) -> None:
    """Records a trained model and its samples."""
    if not run.has_recorded("model_samples", manifest.model_id):
        run.record("model_samples", _sample_rows(manifest))
    run.record(
        "models",
        [
            {
                "model_id": manifest.model_id, "kind": kind, "parent_model_id": parent_model_id,
                "fingerprint": manifest.config_fingerprint, "preset": preset,
                "config": json.dumps(config, sort_keys=True), "path": str(result.folder.relative_to(run.data_root)),
                "recipe_id": recipe_id, "manifest_fingerprint": manifest.fingerprint,
                "count_samples": manifest.count_samples, "source": manifest.source, "revision": manifest.revision,
                "code_version": code_version(), "weights_sha256": sha256_of(result.folder / "model.safetensors"),
                "count_parameters": result.count_parameters, "logit_scale": result.logit_scale,
                "duration_s": duration_s, "created_at": datetime.now(UTC),
            }
        ],
    )  # fmt: skip
    run.count_done += 1


class StepRecorder:
    """Records training steps in pieces, so that a killed run's are not lost.

    A step that another attempt of the same run has recorded already, and that is done again, is passed over.
    """

    def __init__(self, run: StageRun, manifest: Manifest) -> None:
        self.run, self.rows = run, list[Mapping[str, Any]]()
        self.stamp = {"model_id": manifest.model_id, "fingerprint": manifest.config_fingerprint}
        self.known = set(self._recorded(f"{run.run_id}-*.parquet"))

    def add(self, record: StepRecord) -> None:
        self._add(asdict(record))
        if len(self.rows) >= STEPS_PER_RECORD:
            self.flush()

    def complete(self, curve: Path) -> None:
        """Makes the records those of the curve of a finished training.

        A run that was killed may have left steps unrecorded; a model that is trained again has records of the former
        training, which may have been longer. What this very run has recorded stays.
        """
        rows = {(row["phase"], row["step"]): row for row in pq.read_table(curve).to_pylist()}
        recorded = self._recorded("*.parquet")
        for step, row in rows.items():
            if step not in recorded or not np.array_equal(recorded[step]["loss"], row["loss"], equal_nan=True):
                self._add(row)
        last = dict(rows.keys())  # of each phase; a line before it may be lost with the power
        for phase, number in recorded:
            if number > last.get(phase, 0):
                self._add({"phase": phase, "step": number, "is_withdrawn": True})
        self.flush()

    def flush(self) -> None:
        rows, self.rows = self.rows, []
        if rows:
            self.run.record("training_steps", rows)
            self.run.publish_if_due()

    def _add(self, row: dict[str, Any]) -> None:
        step = row["phase"], row["step"]
        if step not in self.known:
            self.known.add(step)
            self.rows.append(self.stamp | row)

    def _recorded(self, files: str) -> dict[tuple[str, int], dict[str, Any]]:
        """The newest records of the model's steps in those files."""
        paths = sorted((self.run.data_root / "records" / "training_steps").glob(files))
        records = ds.dataset(paths, _RECORDED).to_table(filter=ds.field("model_id") == self.stamp["model_id"])
        newest = {(row["phase"], row["step"]): row for row in records.sort_by("run_id").to_pylist()}
        return {step: row for step, row in newest.items() if not row["is_withdrawn"]}


_RECORDED = pa.schema(
    {
        "model_id": pa.string(), "phase": pa.string(), "step": pa.int64(), "loss": pa.float64(),
        "is_withdrawn": pa.bool_(), "run_id": pa.string(),
    }
)  # fmt: skip


def _sample_rows(manifest: Manifest) -> pa.Table:
    table = pq.read_table(manifest.path, columns=["volume_name", "fingerprint", "split"])
    table = table.rename_columns(["sample_id", "fingerprint", "split"])
    return table.append_column("model_id", pa.array([manifest.model_id] * table.num_rows))
