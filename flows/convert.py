"""Convert volumes to shards of a preset's recipe."""

from __future__ import annotations

from typing import Any

from ctclip_model.data.slabs import Encoding
from flows.flow_taking import flow_taking
from flows.options import ConvertOptions
from tasks.models.recipes import find_recipe
from tasks.run.publish import publish_leftovers
from tasks.run.selection import Selection
from tasks.stages.convert import convert_volumes, plan_conversion
from tasks.stages.stage import as_opaque, stage_run
from tasks.volumes.downloader import DownloadOptions


@flow_taking(ConvertOptions)
def convert(options: ConvertOptions) -> dict[str, Any]:
    recipe = find_recipe(options.preset, options.recipe)
    selection = Selection(options.split, options.volumes, options.limit)
    publish_leftovers(options.data_root)
    selection.require_files(options.data_root)
    encoding: Encoding = "raw" if options.uncompressed else "delta-zstd"
    downloads = DownloadOptions(options.raw_cache_gb, options.keep_raw, options.download_threads, options.max_mb_per_s)
    with stage_run(options.data_root, "convert", recipe.recipe_id) as run:
        jobs = plan_conversion(
            run, recipe, selection, options.force, options.retry_rejects, options.source, encoding, downloads
        )
        if jobs:
            convert_volumes(run, as_opaque(jobs), options.dask_address, downloads)
    return run.summary()
