"""The manifest of a training: its samples, written beside the model to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from ctclip_model.config import VERSIONS, Preset, compute_fingerprint
from tasks.run.records import write_parquet
from warehouse import store

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Manifest:
    """What one training run reads, and the model that it makes."""

    path: Path
    model_id: str
    fingerprint: str  # of the samples
    config_fingerprint: str
    count_samples: int
    source: str
    revision: str

    @property
    def folder(self) -> Path:
        """Of the model, under the data root."""
        return Path("models") / self.model_id

    @property
    def origin(self) -> dict[str, str]:
        """What the model card says of the data."""
        return {"source": self.source, "revision": self.revision, "count_samples": f"{self.count_samples:,}"}


def config_fingerprint(preset: Preset) -> str:
    """What decides whether a configuration has a model already; the data does not: see *stale*."""
    return compute_fingerprint(preset.recipe, preset.model, preset.training, VERSIONS["train"])


def write_manifest(data_root: Path, table: pa.Table, name: str, config: str) -> Manifest:
    """Writes the samples of a training of that configuration; its model is called after `name` and what it learns."""
    content = compute_fingerprint(*(table[column].to_pylist() for column in ("volume_name", "fingerprint", "labels")))
    model_id = f"{name}-{compute_fingerprint(config, content)[:10]}"
    return place_manifest(data_root, table, model_id, content, config)


def place_manifest(data_root: Path, table: pa.Table, model_id: str, content: str, config: str) -> Manifest:
    """Writes a manifest where its model is going to be."""
    path = data_root / "models" / f"{model_id}.work" / "manifest.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(table, path)
    with store.read(data_root) as connection:
        origin = connection.execute("select source, revision from current_sources order by run_id desc").fetchone()
    source, revision = origin or ("", "")
    return Manifest(path, model_id, content, config, table.num_rows, source, revision)
