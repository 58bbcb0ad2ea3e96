"""Convert volumes to shards of a preset's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from ctclip_model.data.slabs import Encoding
from tasks.models.recipes import find_recipe
from tasks.run.pending import Selection
from tasks.settings import DATA_ROOT, DOWNLOAD_THREADS, PRESET, RAW_CACHE_GB
from tasks.stages.convert import convert_volumes, plan_conversion
from tasks.stages.stage import as_opaque, stage_run
from tasks.volumes.downloader import DownloadOptions


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
    raw_cache_gb: float = RAW_CACHE_GB,
    keep_raw: bool = False,
    download_threads: int = DOWNLOAD_THREADS,
    max_mb_per_s: float | None = None,
) -> dict[str, Any]:
    """Convert what is new or changed; `source` says where its files lie now, if not where they were ingested.

    `recipe` is JSON, or a file of it, that changes the preset's; its shards stand beside the others. Of a source
    on the Hub, what is not in `raw/` is downloaded, at most `raw_cache_gb` at a time, and dropped once it is converted.
    """
    chosen = find_recipe(preset, recipe)
    encoding: Encoding = "raw" if uncompressed else "delta-zstd"
    downloads = DownloadOptions(raw_cache_gb, keep_raw, download_threads, max_mb_per_s)
    with stage_run(data_root, "convert", chosen.recipe_id) as run:
        selection = Selection(split, volumes, limit)
        jobs = plan_conversion(run, chosen, selection, force, retry_rejects, source, encoding, downloads)
        convert_volumes(run, as_opaque(jobs), dask_address, downloads)
    return run.summary()
