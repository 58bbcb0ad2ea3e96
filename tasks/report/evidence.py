"""Examples of evidence: scans that the model finds with the highest probability, and scans that it misses worst."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import duckdb
import numpy as np
import torch

from ctclip_model.config import HU_PER_UNIT
from ctclip_model.data.label_sets import LabelSet
from ctclip_model.data.shard_store import ShardStore
from ctclip_model.data.shards import ShardReader
from ctclip_model.device import limit_cpu_threads
from ctclip_model.errors import CheckpointError, MissingInputError, ShardError
from ctclip_model.evaluation.embed import count_at_once
from ctclip_model.evaluation.evidence_files import draw_finding, find_inside
from ctclip_model.evaluation.predict import VolumeModel, open_model
from ctclip_model.models.model_folder import is_external
from tasks.labels.label_sources import DEFAULT_SOURCE, LabelSource
from tasks.models.find import ModelReference, require_folder
from tasks.report.own_ct import CUTS, encode
from tasks.report.rows import Row, read_rows
from warehouse import store

EXAMPLES = 2  # scans of an abnormality that are found, and that are missed; 1 for a model as large as the published
PICTURE_BYTES = 1_500_000  # largest size of all pictures: a page has fewer than 5 MB
NO_WEIGHTS = "The model's weights are not on this machine, so no example is drawn."
FORCE = "`ctclip report --force` draws them where they are."

Panel = tuple[str, str, str]  # plane, data URI, description

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvidenceExample:
    """A scan that has the abnormality, and slices of its first reconstruction with the evidence."""

    volume_name: str
    count_volumes: int  # reconstructions whose mean the probability is
    probability: float
    is_found: bool  # the probability reaches the threshold
    panels: Sequence[Panel]


@dataclass(frozen=True)
class EvidenceFinding:
    """An abnormality with its examples, found ones first."""

    abnormality: str
    auroc: float
    threshold: float
    examples: Sequence[EvidenceExample]


def find_evidence(
    connection: duckdb.DuckDBPyConnection,
    data_root: Path,
    model: ModelReference,
    dataset: str,
    split: str,
    source: LabelSource = DEFAULT_SOURCE,
) -> tuple[list[EvidenceFinding], str]:
    """Draws the examples of the abnormalities with the highest, the middle and the lowest AUROC.

    Abnormalities that fewer than five patients have or lack are left out. A volume takes one pass of the encoder. There
    are 12 volumes at most, and 6 for a model as large as the published one. Returns the abnormalities, and a sentence
    on pictures that are left out.
    """
    key = {
        "model_id": model.model_id, "encoder_id": model.encoder_id, "recipe_id": model.recipe_id, "dataset": dataset,
        "split": split, "label_source": source.name, "label_set": source.label_set.name,
        "names": list(source.label_set.names), "count": EXAMPLES,
    }  # fmt: skip
    rows = read_rows(connection, store.load_sql(__package__, "evidence"), key)
    if not rows:
        return [], ""
    try:
        require_folder(model)
        if is_external(model.folder):  # has no tokens to read evidence from
            return [], ""
        with limit_cpu_threads(model.cpu_threads):
            return _find_drawn(data_root, model, source.label_set, rows)
    except (CheckpointError, MissingInputError) as error:
        logger.warning("the page shows no evidence: %s", error)
        return [], NO_WEIGHTS


def _find_drawn(
    data_root: Path, model: ModelReference, label_set: LabelSet, rows: list[Row]
) -> tuple[list[EvidenceFinding], str]:
    """Draws the examples of rows, on a GPU if there is one with room."""
    try:
        return _draw(data_root, open_model(model.folder, device="auto", label_set=label_set), rows)
    except torch.OutOfMemoryError as error:
        logger.warning("evidence is drawn on the CPU, since the GPU is full: %s", error)
        return _draw(data_root, open_model(model.folder, device="cpu", label_set=label_set), rows)


def _draw(data_root: Path, model: VolumeModel, rows: list[Row]) -> tuple[list[EvidenceFinding], str]:
    count = EXAMPLES if count_at_once(model.loaded.model, torch.device("cpu")) > 1 else 1
    rows = [row for row in rows if row["rank"] <= count]
    panels, missing = _draw_volumes(data_root, model, rows)
    return _arrange(rows, panels), _describe_missing(missing, len({row["volume_name"] for row in rows}))


def _draw_volumes(
    data_root: Path, model: VolumeModel, rows: list[Row]
) -> tuple[dict[tuple[str, str], list[Panel]], list[str]]:
    """Panels by volume and abnormality, and the names of the volumes whose shards are not here."""
    panels: dict[tuple[str, str], list[Panel]] = {}
    missing = []
    for name, group in groupby(sorted(rows, key=_volume_of), key=_volume_of):
        try:
            panels |= _draw_volume(data_root, model, name, list(group))
        except ShardError as error:
            logger.warning("the page shows no evidence of %s: %s", name, error)
            missing.append(name)
    return panels, missing


def _volume_of(row: Row) -> str:
    return str(row["volume_name"])


def _draw_volume(
    data_root: Path, model: VolumeModel, name: str, rows: Sequence[Row]
) -> dict[tuple[str, str], list[Panel]]:
    """Panels of a volume's abnormalities, of one pass. Raises `ShardError` for a shard that is gone or damaged."""
    shard_path, row_index = rows[0]["shard_path"], rows[0]["row_index"]
    if shard_path is None:
        raise ShardError(f"{name}: has no current shard")
    with ShardReader(ShardStore.find(data_root).locate(shard_path)) as reader:
        reader.check_name(row_index, name)
        facts, voxels = reader.row(row_index), reader.read(row_index)
    _, _, evidence = model.explain(torch.from_numpy(voxels)[None])
    inside = find_inside(facts.window_start, facts.window_stop, voxels.shape, evidence.parts.shape[1:])
    shown = voxels.astype(np.float32) / HU_PER_UNIT
    panels = {}
    for row in rows:
        index = model.label_set.names.index(row["abnormality"])
        drawn = draw_finding(shown, model.recipe, evidence, index, inside)
        panels[name, row["abnormality"]] = [(plane, encode(picture), _describe(row, plane)) for plane, picture in drawn]
    return panels


def _describe(row: Row, plane: str) -> str:
    """Description of a panel for those who cannot see it."""
    return (
        f"{plane} slice of {row['volume_name']} through the strongest patch for {row['abnormality'].lower()}, "
        f"probability {row['probability']:.3f}, threshold {row['threshold']:.3f}, {CUTS[plane]}"
    )


def _arrange(rows: Sequence[Row], panels: Mapping[tuple[str, str], list[Panel]]) -> list[EvidenceFinding]:
    """Abnormalities with those of their examples that were drawn, as long as `PICTURE_BYTES` last."""
    findings, room = [], PICTURE_BYTES
    for (abnormality, auroc, threshold), group in groupby(
        rows, key=lambda row: (row["abnormality"], row["auroc"], row["threshold"])
    ):
        examples = []
        for row in group:
            drawn = panels.get((row["volume_name"], abnormality), [])
            room -= sum(len(uri) for _, uri, _ in drawn)
            if drawn and room >= 0:
                facts = (row["volume_name"], row["count_volumes"], row["probability"], row["is_found"])
                examples.append(EvidenceExample(*facts, drawn))
        if examples:
            findings.append(EvidenceFinding(abnormality, auroc, threshold, examples))
    return findings


def _describe_missing(missing: Sequence[str], count: int) -> str:
    if not missing:
        return ""
    return f"Shards of {len(missing)} of {count} volumes are not on this machine: no picture of them is drawn. {FORCE}"
