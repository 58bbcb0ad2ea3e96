"""Download volumes of the Hub ahead of their conversion, where there is a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from tasks.models.recipes import find_recipe
from tasks.run.pending import Selection
from tasks.settings import DATA_ROOT, DOWNLOAD_THREADS, PRESET, RAW_CACHE_GB
from tasks.stages.download import download_volumes, plan_downloads
from tasks.stages.stage import as_opaque, stage_run
from tasks.volumes.downloader import DownloadOptions


@flow(name="download")
def download(
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    source: str | None = None,
    split: str | None = None,
    volumes: str | None = None,
    limit: int | None = None,
    force: bool = False,
    recipe: str | None = None,
    raw_cache_gb: float = RAW_CACHE_GB,
    keep_raw: bool = False,
    download_threads: int = DOWNLOAD_THREADS,
    max_mb_per_s: float | None = None,
) -> dict[str, Any]:
    """Fetch into `raw/` what the recipe has no shard of yet: up to `raw_cache_gb`, or all of it with `keep_raw`."""
    downloads = DownloadOptions(raw_cache_gb, keep_raw, download_threads, max_mb_per_s)
    chosen = find_recipe(preset, recipe)
    with stage_run(data_root, "download") as run:
        planned = plan_downloads(run, chosen, Selection(split, volumes, limit), force, source, downloads)
        download_volumes(run, as_opaque(planned), downloads)
    return run.summary()
