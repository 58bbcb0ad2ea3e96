"""The download stage: fills `raw/` with volumes that wait for their conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed

from ctclip_model.config import Recipe
from tasks.run.lost import find_lost_volumes
from tasks.run.progress import show_progress
from tasks.run.stage_run import StageRun
from tasks.volumes.downloader import Downloader, DownloadOptions, count_raw_bytes, list_raw_files
from tasks.volumes.jobs import VolumeFile
from warehouse import store


def list_unconverted(
    run: StageRun, recipe: Recipe, volumes: Mapping[str, VolumeFile], force: bool
) -> dict[str, VolumeFile]:
    """Remote volumes without a shard of the recipe, or whose shard is lost. With `force`, all remote ones.

    Raises `MissingInputError` if every shard of the recipe is gone, except with `force`.
    """
    remote = {name: volume for name, volume in volumes.items() if volume.origin}
    if force:
        return remote
    sql = "select volume_name, fingerprint from current_shard_volumes where recipe_id = ? and shard_path is not null"
    converted = dict(store.query(run.data_root, sql, [recipe.recipe_id]))
    wanted = {name: volume.fingerprint for name, volume in remote.items()}
    lost = find_lost_volumes(run.data_root, recipe.recipe_id, wanted, with_rejects=True)
    return {
        name: volume for name, volume in remote.items() if name in lost or converted.get(name) != volume.fingerprint
    }


def choose_fitting(run: StageRun, volumes: Sequence[VolumeFile], options: DownloadOptions) -> list[VolumeFile]:
    """Chooses the first volumes that fit in the bound beside other files, and notes the others in the run's detail."""
    paths = {volume.path for volume in volumes}
    present = list_raw_files(run.data_root / "raw")
    chosen, held_bytes = [], sum(size for path, size in present.items() if path not in paths)
    for volume in volumes:
        held_bytes += volume.size_bytes
        if held_bytes > options.bound_bytes:
            break
        chosen.append(volume)
    left = volumes[len(chosen) :]
    if left:
        run.detail = (
            f"{len(left)} more ({count_raw_bytes(left) / 1e9:.3g} GB) do not fit in --raw-cache-gb "
            f"{options.raw_cache_gb:g}: convert, free space with `ctclip gc --delete`, and download again, "
            "or download all with --keep-raw"
        )
    return chosen


def download_files(run: StageRun, volumes: Sequence[VolumeFile], options: DownloadOptions, token: str | None) -> None:
    """Downloads the files. A file that cannot be downloaded is a reject, which a rerun tries again."""
    total = count_raw_bytes(volumes) // 10**6
    with Downloader(run.data_root, options, token, run.limits) as downloader:
        downloader.prepare(volumes, max(volume.size_bytes for volume in volumes))
        with show_progress("download", total, "MB") as progress:
            futures = {downloader.submit(volume): volume for volume in volumes}
            done_bytes, found = 0, set()
            for future in as_completed(futures):
                if future.result():
                    found.add(futures[future].volume_name)
                done_bytes += futures[future].size_bytes
                progress.advance(done_bytes // 10**6 - progress.done, downloader.note())
                downloader.record_rejects(run)
        downloader.check_offline()
    _withdraw_rejects(run, found)
    run.count_done = downloader.count_fetched
    run.detail = "; ".join(filter(None, (downloader.summary(), run.detail)))


def _withdraw_rejects(run: StageRun, found: set[str]) -> None:
    """Withdraws the rejects of volumes that are found now."""
    rows = store.query(run.data_root, "select item from current_rejects where stage = ?", [run.stage])
    row = {"stage": run.stage, "variant": run.variant, "fingerprint": "withdrawn", "is_withdrawn": True}
    if withdrawn := [row | {"item": item} for (item,) in rows if item in found]:
        run.record("rejects", withdrawn)
