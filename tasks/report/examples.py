"""Examples of retrieval: a report, the volumes most similar to it, and their middle slices."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from PIL import Image

from ctclip_model.config import Recipe
from ctclip_model.data.shard_store import ShardStore
from ctclip_model.data.shards import ShardReader
from ctclip_model.errors import ShardError
from ctclip_model.evaluation.retrieval import match_ranks
from tasks.models.find import ModelReference
from warehouse import store

NEAREST = 2  # most similar volumes shown beside a report's own volume
REPORT_CHARACTERS = 700
SHOWN_HU = (-1000, 400)  # lung and soft tissue in one picture
PICTURE_SIDE = 160  # pixels on the longer side of a slice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankedVolume:
    """A volume beside a report."""

    volume_name: str
    rank: int  # 1 = most similar to the report
    similarity: float
    is_match: bool  # the report's own volume
    pictures: Sequence[tuple[str, str]]  # (plane, data URI), empty if the shard is on another machine


@dataclass(frozen=True)
class Example:
    """A report beside volumes in the order of their similarity."""

    scan_id: str
    text: str
    rank: int  # rank of the report's own volume
    count: int  # number of ranked volumes
    volumes: Sequence[RankedVolume]


def find_examples(
    connection: duckdb.DuckDBPyConnection, data_root: Path, model: ModelReference, dataset: str, split: str
) -> list[Example]:
    """Selects reports whose own volumes rank first, in the middle and last: neither only the best nor the worst."""
    key = {"model_id": model.encoder_id, "dataset": dataset, "split": split}
    table = connection.sql(store.load_sql(__package__, "pairs"), params=key).to_arrow_table()
    if not len(table):
        return []
    images, texts = (store.stack_vectors(table[name]) for name in ("image", "text"))  # (scans, latent)
    names, scans = table["volume_name"].to_pylist(), table["scan_id"].to_pylist()
    ranks = match_ranks(texts, images)
    by_rank = np.argsort(ranks, kind="stable")
    chosen = dict.fromkeys(int(by_rank[index]) for index in (0, len(by_rank) // 2, len(by_rank) - 1))
    examples = []
    for row in chosen:
        similarities = images @ texts[row]  # (scans,)
        nearest = np.argsort(-similarities, kind="stable").tolist()
        shown = sorted({*nearest[:NEAREST], row}, key=nearest.index)
        volumes = [
            RankedVolume(
                names[other], int(ranks[row]) if other == row else nearest.index(other) + 1,
                float(similarities[other]), other == row, draw_volume(connection, data_root, model, names[other]),
            )
            for other in shown
        ]  # fmt: skip
        text = connection.execute(_REPORT, [scans[row]]).fetchall()
        short = _shorten(text[0][0] if text else "")
        examples.append(Example(scans[row], short, int(ranks[row]), len(table), volumes))
    return examples


def draw_volume(
    connection: duckdb.DuckDBPyConnection, data_root: Path, model: ModelReference, volume_name: str
) -> list[tuple[str, str]]:
    """Draws the middle slices of a converted volume. The list is empty if the shard is on another machine."""
    found = connection.execute(_SHARD, [volume_name, model.recipe_id]).fetchall()
    if not found:
        return []
    shard_path, row_index = found[0]
    try:
        with ShardReader(ShardStore.find(data_root).locate(shard_path)) as reader:
            return draw_slices(reader.read(row_index), reader.recipe)
    except ShardError as error:
        logger.warning("the page shows no slices of %s: %s", volume_name, error)
        return []


def draw_slices(volume: np.ndarray, recipe: Recipe) -> list[tuple[str, str]]:
    """Draws the middle axial, coronal and sagittal slices of a volume.

    The volume is HU (depth, height, width). In CT-RATE the height axis runs from left to right, the width axis from
    front to back, and depth from foot to head. Axial slices are therefore transposed, and the others turned head up.
    Returns (plane, data URI of a PNG).
    """
    depth, height, width = volume.shape
    depth_mm, height_mm, width_mm = recipe.spacing_mm
    slices = {
        "axial": (volume[depth // 2].T, (width_mm, height_mm)),
        "coronal": (volume[::-1, :, width // 2], (depth_mm, height_mm)),
        "sagittal": (volume[::-1, height // 2], (depth_mm, width_mm)),
    }
    return [(plane, _png(voxels, spacing_mm)) for plane, (voxels, spacing_mm) in slices.items()]


def _png(voxels: np.ndarray, spacing_mm: tuple[float, float]) -> str:
    """Scales a slice (rows, columns) to square pixels and encodes it as a data URI."""
    low, high = SHOWN_HU
    grey = (np.clip((voxels.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    height_mm, width_mm = (count * spacing for count, spacing in zip(grey.shape, spacing_mm, strict=True))
    scale = PICTURE_SIDE / max(height_mm, width_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    picture = Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shorten(text: str) -> str:
    text = text.strip()
    return text if len(text) <= REPORT_CHARACTERS else text[:REPORT_CHARACTERS].rsplit(" ", 1)[0] + " …"


_REPORT = "select concat_ws(' ', findings, impression) from current_reports where scan_id = ?"
_SHARD = "select shard_path, row_index from converted_volumes where volume_name = ? and recipe_id = ?"
