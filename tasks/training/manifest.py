"""Manifests of trainings: their samples, written beside the model folder to be."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ctclip_model.config import VERSIONS, Preset, compute_fingerprint
from ctclip_model.training.job import Manifest
from tasks.labels.label_sources import LabelSource
from tasks.run.lost import require_shards
from tasks.run.records import write_parquet
from warehouse import store


def config_fingerprint(preset: Preset, source: LabelSource | None = None) -> str:
    """The fingerprint of a CT-CLIP's configuration, with the source of the labels that it names, if any.

    The data is no part of it: a model whose data moved is stale.
    """
    named = () if source is None else source.parts
    return compute_fingerprint(preset.recipe, preset.model, preset.training, VERSIONS["train"], *named)


def write_manifest(data_root: Path, table: pa.Table, name: str, config: str) -> Manifest:
    """Writes the samples of a training. The model's identifier is `name` and a hash of configuration and samples.

    Raises `MissingInputError` if a shard of a sample is lost.
    """
    if "shard_path" in table.column_names:
        require_shards(data_root, table["shard_path"].to_pylist())
    content = compute_fingerprint(*(table[column].to_pylist() for column in ("volume_name", "fingerprint", "labels")))
    model_id = f"{name}-{compute_fingerprint(config, content)[:10]}"
    return place_manifest(data_root, table, model_id, content, config)


def place_manifest(data_root: Path, table: pa.Table, model_id: str, content: str, config: str) -> Manifest:
    """Writes a manifest of known fingerprints: `content` of the samples, `config` of the configuration."""
    path = data_root / "models" / f"{model_id}.work" / "manifest.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(table, path)
    rows = store.query(data_root, "select source, revision from current_sources order by run_id desc limit 1")
    source, revision = rows[0] if rows else ("", "")
    return Manifest(path, model_id, content, config, table.num_rows, source, revision)
