"""Parts that both kinds of fine-tuning share: the check of the labels and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from ctclip_model.config import LiProConfig, VocabFineConfig
from ctclip_model.data.label_sets import LabelSet
from ctclip_model.errors import MissingInputError
from ctclip_model.models.held_out import HeldOut
from ctclip_model.models.model_card import describe_data, write_card
from ctclip_model.training.engine.curve import TrainingResult

OF_TRAINING = (
    "held_out",
    "count_cut_texts",
    "label_set",
)  # facts of one training, which a model made of it does not inherit


def require_labels(labels: Tensor, manifest: Path) -> None:
    """Raises `MissingInputError` where every label is NaN."""
    if labels.isnan().all():
        raise MissingInputError(f"{manifest}: no label of the train split is known")


def keep_facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """The parent's facts that hold for a model made of it, such as its recipe, and not those of its training."""
    return {name: value for name, value in info.items() if name not in OF_TRAINING}


def write_fine_tuned_card(
    result: TrainingResult,
    method: str,
    parent: Path,
    config: VocabFineConfig | LiProConfig,
    curve: pa.Table,
    origin: Mapping[str, str],
    label_set: LabelSet,
    held_out: HeldOut | None = None,
    *,
    maker: str = "the CT-CLIP",
) -> str:
    """The model card of a fine-tuned model; `method` opens its description, and `maker` says what its parent is."""
    findings = {} if label_set.is_built_in else {"Findings": f"{label_set.name}: {', '.join(label_set.names)}."}
    samples = curve["samples"][-1].as_py() if len(curve) else 0
    return write_card(
        result.folder.name,
        tags=["chest-ct", "image-classification"],
        description=f"{method} (arXiv 2403.17834), of {maker} `{parent.name}`.",
        facts={
            "Data": describe_data(origin, "labelled volumes of the train split"),
            **findings,
            "Model": f"{result.count_parameters:,} parameters.",
            "Training": f"{result.steps:,} steps on {samples:,} samples, AdamW at {config.learning_rate:g}, "
            f"seed {config.seed}, epochs: {config.epochs}.",
        },
        metrics={"loss, mean of the last steps": f"{result.loss:.4f}"},
        held_out=held_out,
    )
