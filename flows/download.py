"""Download volumes of the Hub or a bucket ahead of their conversion."""

from __future__ import annotations

from typing import Any

from flows import options as signatures
from flows.flow_taking import flow_taking
from tasks.models.recipes import find_recipe
from tasks.run.publish import publish_leftovers
from tasks.run.selection import Selection
from tasks.stages.download import download_volumes, plan_downloads
from tasks.stages.stage import as_opaque, stage_run
from tasks.volumes.downloader import DownloadOptions


@flow_taking(signatures.DownloadOptions)
def download(options: signatures.DownloadOptions) -> dict[str, Any]:
    recipe = find_recipe(options.preset, options.recipe)
    selection = Selection(options.split, options.volumes, options.limit)
    publish_leftovers(options.data_root)
    selection.require_files(options.data_root)
    downloads = DownloadOptions(options.raw_cache_gb, options.keep_raw, options.download_threads, options.max_mb_per_s)
    with stage_run(options.data_root, "download") as run:
        volumes = plan_downloads(run, recipe, selection, options.force, options.source, downloads)
        download_volumes(run, as_opaque(volumes), downloads)
    return run.summary()
