"""Records of training steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ctclip_model.training.job import Manifest
from tasks.run.stage_run import StageRun

if TYPE_CHECKING:
    from ctclip_model.training.engine.loop import StepRecord

STEPS_PER_RECORD = 50
Step = tuple[str, int]  # phase and number
READ_COLUMNS = pa.schema(
    {
        "model_id": pa.string(), "phase": pa.string(), "step": pa.int64(), "loss": pa.float64(),
        "is_withdrawn": pa.bool_(), "run_id": pa.string(),
    }
)  # fmt: skip


class StepRecorder:
    """Records training steps 50 at a time, so that a killed run keeps most of its steps.

    A step that an earlier attempt of the same run has recorded is not recorded again.
    """

    def __init__(self, run: StageRun, manifest: Manifest) -> None:
        self.run, self.rows = run, list[Mapping[str, Any]]()
        self.stamp = {"model_id": manifest.model_id, "fingerprint": manifest.config_fingerprint}
        self.known = set(self._read_recorded(f"{run.run_id}-*.parquet"))

    def add(self, record: StepRecord) -> None:
        self._add(asdict(record))
        if len(self.rows) >= STEPS_PER_RECORD:
            self.flush()

    def complete(self, curve: Path) -> None:
        """Makes the model's recorded steps equal to the curve of its finished training, a Parquet file.

        Records the steps that are missing or have another loss, and withdraws those after the last step of their
        phase. A killed run may have left steps unrecorded. A model that is trained again has the steps of its former
        training, which may have been longer. Steps that this run has recorded stay.
        """
        in_curve = {(row["phase"], row["step"]): row for row in pq.read_table(curve).to_pylist()}
        recorded = self._read_recorded("*.parquet")
        for step, row in in_curve.items():
            if step not in recorded or not np.array_equal(recorded[step], row["loss"], equal_nan=True):
                self._add(row)
        # Only steps after the last one go: a power cut may have cost the curve a line before it.
        last = dict(in_curve.keys())  # number of the last step by phase
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

    def _read_recorded(self, pattern: str) -> dict[Step, float]:
        """The loss of each step of the model that the latest run has recorded and not withdrawn."""
        paths = sorted((self.run.data_root / "records" / "training_steps").glob(pattern))
        records = ds.dataset(paths, READ_COLUMNS).to_table(filter=ds.field("model_id") == self.stamp["model_id"])
        latest = {(row["phase"], row["step"]): row for row in records.sort_by("run_id").to_pylist()}
        return {step: row["loss"] for step, row in latest.items() if not row["is_withdrawn"]}
