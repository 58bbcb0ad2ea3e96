"""A training as data: the file that each of its processes reads, and that an order carries. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from ctclip_model.config import LabellerConfig, LiProConfig, Preset, VocabFineConfig
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.device import Compute
from ctclip_model.files import whole_file
from ctclip_model.models.kinds import ModelKind

T = TypeVar("T")


@dataclass(frozen=True)
class Manifest:
    """The samples of a training, a Parquet file, and the model that they make."""

    path: Path
    model_id: str
    fingerprint: str  # fingerprint of the samples
    config_fingerprint: str
    count_samples: int
    source: str  # data set that the samples are from
    revision: str

    @property
    def folder(self) -> Path:
        """The model folder, relative to the data root."""
        return Path("models") / self.model_id

    @property
    def origin(self) -> dict[str, str]:
        """The facts that a model card states about the data."""
        return {"source": self.source, "revision": self.revision, "count_samples": f"{self.count_samples:,}"}


@dataclass(frozen=True)
class Parent:
    """The trained CT-CLIP that a fine-tuning starts from."""

    model_id: str
    folder: Path
    weights_sha256: str
    recipe_id: str


@dataclass(frozen=True)
class TrainingJob:
    """A training of any kind of model. In a file its paths are relative to the data root: see `move_paths`."""

    kind: ModelKind
    manifest: Manifest
    preset: Preset
    compute: Compute
    parent: Parent | None = None  # None: trained from random weights
    labels_of: str | None = None  # source of the labels that the training names
    label_set: LabelSet = CT_RATE_18  # findings of these labels

    @property
    def config(self) -> Preset | LiProConfig | VocabFineConfig | LabellerConfig:
        """The part of the preset that configures this kind's training."""
        parts: dict[ModelKind, LiProConfig | VocabFineConfig | LabellerConfig] = {
            ModelKind.lipro: self.preset.lipro,
            ModelKind.vocabfine: self.preset.vocabfine,
            ModelKind.labeller: self.preset.labeller,
        }
        return parts.get(self.kind, self.preset)


def move_paths(value: T, move: Callable[[Path], Path]) -> T:
    """A copy of a dataclass with every path in it moved, such as to another machine's data root."""
    changed: dict[str, Any] = {}
    for field in fields(cast(Any, value)):
        part = getattr(value, field.name)
        if isinstance(part, Path):
            changed[field.name] = move(part)
        elif is_dataclass(part):
            changed[field.name] = move_paths(part, move)
    return cast(T, replace(cast(Any, value), **changed))


def to_json(value: Any) -> bytes:
    """A dataclass as JSON, read again by `json_config.read_config`."""
    return json.dumps(value, default=_encode, indent=2).encode()


def _encode(part: Any) -> Any:
    return {field.name: getattr(part, field.name) for field in fields(part)} if is_dataclass(part) else str(part)


def write_json(path: Path, value: Any) -> None:
    """Writes a dataclass to a file that is complete or absent."""
    with whole_file(path) as file:
        file.write(to_json(value))
