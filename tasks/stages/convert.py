"""Convert: volumes become shards on a Dask cluster, one shard for each job."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import Recipe
from ctclip_model.data.slabs import Encoding
from tasks.run.collector import pausing_collector
from tasks.run.lost import find_lost_volumes
from tasks.run.pending import plan_items
from tasks.run.selection import Selection
from tasks.run.stage_run import StageRun
from tasks.stages.hub_token import load_hub_token
from tasks.volumes.downloader import Downloader, DownloadOptions, count_raw_bytes
from tasks.volumes.jobs import (
    ConversionJob,
    check_folders,
    check_room,
    fingerprint_volumes,
    make_jobs,
    make_volumes,
    read_rows,
)


@pausing_collector()
def plan_conversion(
    run: StageRun,
    recipe: Recipe,
    selection: Selection,
    force: bool,
    retry_rejects: bool,
    source: str | None,
    encoding: Encoding,
    downloads: DownloadOptions,
) -> list[ConversionJob]:
    """Jobs for the volumes with a new file, spacing, rescaling or recipe, and for those whose shard is lost.

    Raises `MissingInputError` if every shard of the recipe is gone, except with `force`.
    """
    rows = read_rows(run.data_root)
    wanted = fingerprint_volumes(rows, recipe)
    lost: dict[str, str] = {}
    if not force:
        lost = find_lost_volumes(run.data_root, recipe.recipe_id, wanted, with_rejects=retry_rejects)
    if lost:
        get_run_logger().warning("%d volumes lost their shards, such as %s", len(lost), min(lost.values()))
    pending = plan_items(
        run, recipe.recipe_id, wanted, selection=selection, force=force, retry_rejects=retry_rejects, lost=lost
    )
    volumes = make_volumes(run.data_root, rows, pending, source)
    chosen = [volumes[name] for name in pending]
    check_folders(run.data_root, source, chosen)
    check_room(run.data_root, len(chosen), recipe, encoding)
    return make_jobs(run, recipe, chosen, encoding, downloads.bound_bytes)


@task(cache_policy=NO_CACHE)
def convert_volumes(
    run: StageRun, jobs: list[ConversionJob], dask_address: str | None, downloads: DownloadOptions
) -> None:
    """Runs the jobs, and downloads missing volumes before. A job whose worker dies runs again on another one."""
    from tasks.volumes.convert import run_jobs  # imported late: no plan reads volumes

    volumes = [volume for job in jobs for volume in job.volumes if volume.origin]
    if volumes:
        with Downloader(run.data_root, downloads, load_hub_token(), run.limits) as downloader:
            downloader.prepare(volumes, max(map(count_raw_bytes, (job.volumes for job in jobs))))
            run_jobs(run, jobs, dask_address, downloader)
            run.detail = downloader.summary()
            downloader.check_offline()
    else:
        run_jobs(run, jobs, dask_address)
    get_run_logger().info("%d volumes converted, %d rejected", run.count_done, run.count_rejected)
