"""What comes from the Hugging Face Hub."""

from __future__ import annotations

from flows.commands import app
from flows.commands.options import (
    DataRoot,
    DownloadThreads,
    Force,
    Json,
    KeepRaw,
    Limit,
    MaxRate,
    Preset,
    RawCache,
    Source,
    Split,
    Volumes,
)
from flows.commands.running import run_flow
from tasks.settings import DATA_ROOT, DOWNLOAD_THREADS, PRESET, RAW_CACHE_GB


@app.command()
def download(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    source: Source = None,
    split: Split = None,
    volumes: Volumes = None,
    limit: Limit = None,
    force: Force = False,
    raw_cache_gb: RawCache = RAW_CACHE_GB,
    keep_raw: KeepRaw = False,
    download_threads: DownloadThreads = DOWNLOAD_THREADS,
    max_mb_per_s: MaxRate = None,
    as_json: Json = False,
) -> None:
    """Download volumes ahead of their conversion: up to the bound, or all with --keep-raw."""
    run_flow(
        "download", as_json, data_root=data_root, preset=preset, source=source, split=split, volumes=volumes,
        limit=limit, force=force, raw_cache_gb=raw_cache_gb, keep_raw=keep_raw, download_threads=download_threads,
        max_mb_per_s=max_mb_per_s,
    )  # fmt: skip
