"""What a training tells of itself: its curve, its result, and the model card at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ctclip_model.config import Preset
from ctclip_model.errors import ConfigurationError
from ctclip_model.training.distributed import rank
from ctclip_model.training.loop import StepRecord

LAST_STEPS = 50  # whose mean loss is the run's
CURVE = pa.schema(
    {
        "step": pa.int64(), "samples": pa.int64(), "loss": pa.float64(), "learning_rate": pa.float64(),
        "gradient_norm": pa.float64(), "volumes_per_s": pa.float64(), "data_wait_share": pa.float64(),
        "validation_auroc": pa.float64(),
    }
)  # fmt: skip


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run says about its model."""

    folder: Path
    count_parameters: int
    logit_scale: float  # exp(temperature)
    steps: int
    loss: float  # mean of the last 50 steps


class RunLog:
    """Passes on what steps report, and keeps it in `curve.jsonl` of the run's folder, over kills and reruns.

    With `tensorboard` it writes event files beside; raises `ConfigurationError` where that is not installed.
    """

    def __init__(self, folder: Path, on_step: Callable[[StepRecord], None] | None, *, tensorboard: bool) -> None:
        self.path, self.on_step = folder / "curve.jsonl", on_step
        self.events = _open_events(folder / "tensorboard") if tensorboard and rank() == 0 else None

    def add(self, record: StepRecord) -> None:
        if rank() == 0:
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        if self.events is not None:
            for name in CURVE.names[2:]:
                if (value := getattr(record, name)) is not None:
                    self.events.add_scalar(f"{record.phase}/{name}", value, record.step)
            self.events.flush()
        if self.on_step is not None:
            self.on_step(record)

    def curve(self) -> pa.Table:
        """A row a step; of a step that was done again after a kill, the last."""
        steps: dict[int, dict[str, Any]] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:  # a kill cut the line off
                continue
            steps[row["step"]] = {name: row[name] for name in CURVE.names}
        return pa.Table.from_pylist([steps[step] for step in sorted(steps)], CURVE)

    def close(self) -> None:
        """Removes the file, whose content is the model's by now."""
        self.path.unlink(missing_ok=True)
        if self.events is not None:
            self.events.close()


def last_loss(curve: pa.Table) -> float:
    """The mean of the last steps that have a finite loss; NaN without a step."""
    losses = np.array(curve["loss"].to_pylist()[-LAST_STEPS:])
    finite = losses[np.isfinite(losses)]
    return float(finite.mean()) if len(finite) else float("nan")


def write_card(name: str, preset: Preset, result: TrainingResult, curve: pa.Table, origin: Mapping[str, str]) -> str:
    """The model card, as the Hugging Face Hub shows it: what the model is, of which data, and how well it does."""
    validations = [(row["step"], row["validation_auroc"]) for row in curve.to_pylist() if row["validation_auroc"]]
    auroc = validations[-1][1] if validations else None
    data = origin.get("source") or "a manifest"
    revision = f", revision {origin['revision']}" if origin.get("revision") else ""
    training, vision = preset.training, preset.model.vision
    metrics = [
        ("loss, mean of the last steps", f"{result.loss:.4f}"),
        ("exp(temperature)", f"{result.logit_scale:.2f}"),
    ]
    if auroc is not None:
        metrics.append(("macro zero-shot AUROC on held-out scans of the train split", f"{auroc:.3f}"))
    return "\n".join(
        [
            "---",
            "tags: [chest-ct, contrastive, zero-shot-classification]",
            "---",
            f"# {name}",
            "",
            "CT-CLIP (arXiv 2403.17834): an image and a text encoder whose latents agree on a chest CT and its report.",
            "",
            f"- Data: {data}{revision}; {origin.get('count_samples', 'some')} volumes of the train split.",
            f"- Model: preset `{preset.name}`, {result.count_parameters:,} parameters; volumes of {vision.depth} x "
            f"{vision.image_size} x {vision.image_size} voxels at {' x '.join(map(str, preset.recipe.spacing_mm))} mm, "
            f"recipe `{preset.recipe.recipe_id}`.",
            f"- Training: {result.steps:,} steps of {training.batch_size}, AdamW at {training.learning_rate:g}, "
            f"negatives of the {training.negatives} batch, report sections {' and '.join(training.report_sections)}, "
            f"seed {training.seed}.",
            "",
            "| metric | value |",
            "|---|---|",
            *(f"| {metric} | {value} |" for metric, value in metrics),
            "",
            "`metrics.parquet` holds the training's curve, a row a step. For research; not a medical device.",
            "",
        ]
    )


def _open_events(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigurationError("event files need the package `tensorboard`: pip install tensorboard") from error
    return SummaryWriter(str(folder))
