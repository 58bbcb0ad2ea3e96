"""Convert volumes to shards of a preset's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from tasks.planning import Selection
from tasks.presets import find_preset
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
) -> dict[str, Any]:
    """Convert what is new or changed; `source` says where its files lie now, if not where they were ingested."""
    recipe = find_preset(preset).recipe
    with stage_run(data_root, "convert", recipe.recipe_id) as run:
        jobs = plan_conversion(run, recipe, Selection(split, volumes, limit), force, retry_rejects, source)
        convert_volumes(run, whole(jobs), dask_address)
    return run.summary()
