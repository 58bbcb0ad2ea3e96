"""The curve of a training, a row a step, and its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from ctclip_model.errors import ConfigurationError
from ctclip_model.training.engine.checkpoints import storage_errors
from ctclip_model.training.engine.loop import StepRecord
from ctclip_model.training.engine.processes import rank
from ctclip_model.training.engine.state import state_folder, work_folder

LAST_STEPS = 50  # steps whose mean loss is the run's loss
CURVE = pa.schema(
    {
        "phase": pa.string(), "step": pa.int64(), "samples": pa.int64(), "loss": pa.float64(),
        "learning_rate": pa.float64(), "gradient_norm": pa.float64(), "volumes_per_s": pa.float64(),
        "data_wait_share": pa.float64(), "memory_bytes": pa.int64(), "validation_auroc": pa.float64(),
    }
)  # fmt: skip
PLOTTED = ("loss", "learning_rate", "gradient_norm", "volumes_per_s", "data_wait_share", "validation_auroc")


@dataclass(frozen=True)
class TrainingResult:
    """The model of a finished run in numbers."""

    folder: Path
    count_parameters: int
    logit_scale: float | None  # exp(temperature); None: no text side
    steps: int
    loss: float  # mean of the last 50 steps


class RunLog:
    """Passes step records on, and keeps them in the training's state, so that they survive a kill.

    `tensorboard` also writes event files beside the state. Raises `ConfigurationError` without that package.
    """

    def __init__(
        self, folder: Path, on_step: Callable[[StepRecord], None] | None, *, tensorboard: bool = False
    ) -> None:
        self.path, self.on_step = state_folder(folder) / "curve.jsonl", on_step
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.events = _Events(work_folder(folder) / "tensorboard") if tensorboard and rank() == 0 else None
        if rank() == 0 and self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")  # ends a line that a kill cut off

    def add(self, record: StepRecord) -> None:
        if rank() == 0:
            with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        if self.events is not None:
            self.events.add(record)
        if self.on_step is not None:
            self.on_step(record)

    def curve(self) -> pa.Table:
        """A row a step, phase after phase. A step that was repeated after a kill has its last record."""
        phases: dict[str, list[dict[str, Any]]] = {}
        for line in self.path.read_text("utf-8").splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:  # a line that a kill cut off
                continue
            rows = phases.setdefault(row["phase"], [])
            while rows and rows[-1]["step"] >= row["step"]:
                rows.pop()
            rows.append({name: row[name] for name in CURVE.names})
        return pa.Table.from_pylist([row for rows in phases.values() for row in rows], CURVE)

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


class _Events:
    """TensorBoard event files, one folder a phase. Steps that a killed run did after its checkpoint are hidden."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigurationError("event files need TensorBoard: pip install tensorboard") from error
        self.folder, self.writer_type = folder, SummaryWriter
        self.writers: dict[str, Any] = {}

    def add(self, record: StepRecord) -> None:
        if record.phase not in self.writers:
            self.writers[record.phase] = self.writer_type(str(self.folder / record.phase), purge_step=record.step)
        writer = self.writers[record.phase]
        for name in PLOTTED:
            if (value := getattr(record, name)) is not None:
                writer.add_scalar(name, value, record.step)
        writer.flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def summarise_run(
    folder: Path, model: nn.Module, logit_scale: float | None, steps: int, curve: pa.Table
) -> TrainingResult:
    """The result of a run, its parameters counted and its loss read from the curve."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return TrainingResult(folder, count, logit_scale, steps, last_loss(curve))


def last_loss(curve: pa.Table) -> float:
    """The mean of the last 50 steps of the last phase that have a finite loss. NaN without a step."""
    rows = curve.select(["phase", "loss"]).to_pylist()
    losses = np.array([row["loss"] for row in rows if row["phase"] == rows[-1]["phase"]][-LAST_STEPS:])
    finite = losses[np.isfinite(losses)]
    return float(finite.mean()) if len(finite) else float("nan")
