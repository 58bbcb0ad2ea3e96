"""Rows of `models`, written by trainings and imports alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ctclip_model.files import sha256_of
from ctclip_model.models.held_out import read_count_cut, read_held_out
from ctclip_model.models.kinds import ModelKind
from tasks.run.code_version import code_version
from tasks.run.cut_texts import note_cut
from tasks.run.stage_run import StageRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """Columns of `models` that the maker of a model folder knows. A null column is None."""

    model_id: str  # also the name of its folder below `models/`
    kind: ModelKind
    fingerprint: str
    preset: str
    config: Mapping[str, Any]
    count_parameters: int
    duration_s: float
    recipe_id: str | None = None  # null for labellers
    logit_scale: float | None = None  # null for labellers
    parent_model_id: str | None = None
    manifest_fingerprint: str | None = None
    count_samples: int | None = None
    source: str | None = None
    revision: str | None = None
    source_sha256: str | None = None  # null for models trained here


def record_model(run: StageRun, row: ModelRow) -> None:
    """Records the model of a folder that is complete, with its held-out score, and counts it as done."""
    folder = run.data_root / "models" / row.model_id
    held_out = read_held_out(folder)
    columns = {name: value for name, value in vars(row).items() if value is not None}
    columns |= {
        "config": json.dumps(row.config, sort_keys=True), "path": str(folder.relative_to(run.data_root)),
        "code_version": code_version(), "weights_sha256": sha256_of(folder / "model.safetensors"),
        "created_at": datetime.now(UTC),
    }  # fmt: skip
    if held_out is not None:
        columns |= {"held_out": json.dumps(asdict(held_out)), "warning": held_out.warning}
    if (count_cut := read_count_cut(folder)) is not None:
        columns["count_cut_texts"] = count_cut
    run.record("models", [columns])
    run.count_done += 1


def note_held_out(run: StageRun, model_id: str, if_none: str) -> None:
    """Puts a trained model's held-out score, or `if_none`, in the run's summary. Logs the warning of a poor score.

    The summary also says how many training reports are longer than the model's limit of tokens.
    """
    folder = run.data_root / "models" / model_id
    held_out = read_held_out(folder)
    run.detail = if_none if held_out is None else str(held_out)
    note_cut(run, read_count_cut(folder) or 0)
    if held_out is not None and held_out.warning:
        logger.warning("%s %s", model_id, held_out.warning)
