"""Download: volumes that wait for their conversion."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import Recipe
from tasks.run.selection import Selection
from tasks.run.stage_run import StageRun
from tasks.stages.hub_token import load_hub_token
from tasks.volumes.download import choose_fitting, download_files, list_unconverted
from tasks.volumes.downloader import DownloadOptions
from tasks.volumes.jobs import VolumeFile, read_volumes


def plan_downloads(
    run: StageRun, recipe: Recipe, selection: Selection, force: bool, source: str | None, downloads: DownloadOptions
) -> list[VolumeFile]:
    """Selected remote volumes without a shard, as many as fit the disk space of `raw/`.

    Raises `MissingInputError` if every shard of the recipe is gone, except with `force`.
    """
    volumes = list_unconverted(run, recipe, read_volumes(run.data_root, recipe, source), force)
    return choose_fitting(run, [volumes[name] for name in selection.choose(volumes)], downloads)


@task(cache_policy=NO_CACHE)
def download_volumes(run: StageRun, volumes: list[VolumeFile], downloads: DownloadOptions) -> None:
    """Downloads missing volumes and checks all of them."""
    if volumes:
        download_files(run, volumes, downloads, load_hub_token())
    get_run_logger().info("%s", run.detail)
