"""Examples of retrieval: reports, the volumes most similar to them, and what those look like."""

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
from ctclip_model.data.shards import ShardReader
from ctclip_model.errors import ShardError
from ctclip_model.evaluation.retrieval import match_ranks
from tasks.models.find import ModelReference

NEAREST = 2  # volumes shown of each report, beside its own
REPORT_CHARACTERS = 700
SHOWN_HU = (-1000, 400)  # lung and soft tissue in one picture
PICTURE_SIDE = 160  # pixels, of the longer side

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A volume beside a report; `pictures` are (plane, data URI) and empty where its shard is elsewhere."""

    volume_name: str
    rank: int
    similarity: float
    is_match: bool
    pictures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """A report, the rank of its own volume among `count` of them, and volumes in the order of their similarity."""

    scan_id: str
    text: str
    rank: int
    count: int
    found: Sequence[Found]


def find_examples(
    connection: duckdb.DuckDBPyConnection, data_root: Path, model: ModelReference, dataset: str, split: str
) -> list[Example]:
    """The reports whose own volume ranks first, in the middle and last: neither the best alone nor the worst."""
    key = {"model_id": model.encoder_id, "dataset": dataset, "split": split}
    table = connection.sql(_PAIRS, params=key).to_arrow_table()
    if not len(table):
        return []
    images, texts = (
        table[name].combine_chunks().flatten().to_numpy().reshape(len(table), -1) for name in ("image", "text")
    )
    names, scans = table["volume_name"].to_pylist(), table["scan_id"].to_pylist()
    ranks = match_ranks(texts, images)
    in_order = np.argsort(ranks, kind="stable")
    chosen = dict.fromkeys(int(in_order[place]) for place in (0, len(in_order) // 2, len(in_order) - 1))
    examples = []
    for row in chosen:
        similarities = images @ texts[row]  # (volumes,)
        nearest = np.argsort(-similarities, kind="stable").tolist()
        shown = sorted({*nearest[:NEAREST], row}, key=nearest.index)
        found = [
            Found(
                names[one], int(ranks[row]) if one == row else nearest.index(one) + 1, float(similarities[one]),
                one == row, draw_volume(connection, data_root, model, names[one]),
            )
            for one in shown
        ]  # fmt: skip
        text = connection.execute(_REPORT, [scans[row]]).fetchone()
        short = _shorten(text[0] if text else "")
        examples.append(Example(scans[row], short, int(ranks[row]), len(table), found))
    return examples


def draw_volume(
    connection: duckdb.DuckDBPyConnection, data_root: Path, model: ModelReference, volume_name: str
) -> list[tuple[str, str]]:
    """The middle slices of a converted volume, or none where its shard is not on this machine."""
    place = connection.execute(_SHARD, [volume_name, model.recipe_id]).fetchone()
    if place is None:
        return []
    try:
        with ShardReader(data_root / place[0]) as reader:
            return draw_slices(reader.read(place[1]), reader.recipe)
    except ShardError as error:
        logger.warning("the page shows no slices of %s: %s", volume_name, error)
        return []


def draw_slices(volume: np.ndarray, recipe: Recipe) -> list[tuple[str, str]]:
    """The mid-axial, coronal and sagittal slice of a volume, HU (depth, height, width), as (plane, data URI of a PNG).

    Height and width are the first and second array axes of the source, left to right and front to back in CT-RATE,
    depth runs from foot to head: so an axial slice is transposed, and the others turned upside down.
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
    low, high = SHOWN_HU
    grey = (np.clip((voxels.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    down_mm, across_mm = (side * spacing for side, spacing in zip(grey.shape, spacing_mm, strict=True))
    scale = PICTURE_SIDE / max(down_mm, across_mm)
    size = (max(1, round(across_mm * scale)), max(1, round(down_mm * scale)))
    picture = Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shorten(text: str) -> str:
    text = text.strip()
    return text if len(text) <= REPORT_CHARACTERS else text[:REPORT_CHARACTERS].rsplit(" ", 1)[0] + " …"


# a scan by its first reconstruction, beside its report: as retrieval is scored
_PAIRS = """
select
    volumes.scan_id, min(volumes.volume_name) as volume_name, arg_min(volumes.latent, volumes.volume_name) as image,
    any_value(reports.latent) as text
from evaluation_samples as volumes
join wanted_latents as reports
    on reports.kind = 'report' and reports.model_id = volumes.model_id and reports.item = volumes.scan_id
where volumes.model_id = $model_id and dataset = $dataset and split = $split
group by volumes.scan_id
order by volumes.scan_id
"""
_REPORT = "select concat_ws(' ', findings, impression) from current_reports where scan_id = ?"
_SHARD = "select shard_path, row_index from converted_volumes where volume_name = ? and recipe_id = ?"
