"""Convert volumes to shards of a preset's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from ctclip_model.data.slabs import Encoding
from tasks.planning import Selection
from tasks.recipes import find_recipe
from tasks.settings import DATA_ROOT, PRESET
from tasks.stages import stage_run, whole
from tasks.stages.convert import convert_volumes, plan_conversion


@flow(name="convert")
def convert(
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    source: str | None = None,
    split: str | None = None,
    volumes: str | None = None,
    limit: int | None = None,
    force: bool = False,
    retry_rejects: bool = False,
    dask_address: str | None = None,
    recipe: str | None = None,
    uncompressed: bool = False,
) -> dict[str, Any]:
    """Convert what is new or changed; `source` says where its files lie now, if not where they were ingested.

    `recipe` is JSON, or a file of it, that changes the preset's; its shards stand beside the others.
    """
    chosen = find_recipe(preset, recipe)
    encoding: Encoding = "raw" if uncompressed else "delta-zstd"
    with stage_run(data_root, "convert", chosen.recipe_id) as run:
        selection = Selection(split, volumes, limit)
        jobs = plan_conversion(run, chosen, selection, force, retry_rejects, source, encoding)
        convert_volumes(run, whole(jobs), dask_address)
    return run.summary()
