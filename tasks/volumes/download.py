"""The download stage: fills `raw/` with what conversion will need, and says what did not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed

from ctclip_model.config import Recipe
from tasks.run.progress import show_progress
from tasks.run.stage_run import StageRun
from tasks.volumes.downloader import Downloader, DownloadOptions, count_raw_bytes, list_raw_files, record_missing
from tasks.volumes.jobs import VolumeFile
from warehouse import store


def list_unconverted(
    run: StageRun, recipe: Recipe, volumes: Mapping[str, VolumeFile], force: bool
) -> dict[str, VolumeFile]:
    """The volumes of the Hub that have no current row in a shard, or all of them by `force`."""
    with store.read(run.data_root) as connection:
        rows = connection.execute(
            "select volume_name, fingerprint from current_shard_volumes where recipe_id = ?", [recipe.recipe_id]
        ).fetchall()
    converted = {} if force else dict(rows)
    return {name: one for name, one in volumes.items() if one.origin and converted.get(name) != one.fingerprint}


def choose_fitting(run: StageRun, volumes: Sequence[VolumeFile], options: DownloadOptions) -> list[VolumeFile]:
    """As many of the first volumes as the bound allows for beside other files; the run's detail tells of the rest."""
    mine = {volume.path for volume in volumes}
    chosen, held = [], sum(size for path, size in list_raw_files(run.data_root / "raw").items() if path not in mine)
    for volume in volumes:
        held += volume.size_bytes
        if held > options.bound_bytes:
            break
        chosen.append(volume)
    left = volumes[len(chosen) :]
    if left:
        run.detail = (
            f"{len(left)} more ({count_raw_bytes(left) / 1e9:.3g} GB) do not fit in --raw-cache-gb "
            f"{options.raw_cache_gb:g}: convert, drop by `ctclip gc` what nothing needs, and download again; "
            "or --keep-raw for all"
        )
    return chosen


def download_files(run: StageRun, volumes: Sequence[VolumeFile], options: DownloadOptions, token: str | None) -> None:
    """Fetches the files, in megabytes of progress; those that cannot be had are rejects, which a rerun tries again."""
    total = count_raw_bytes(volumes) // 10**6
    with Downloader(run.data_root, options, token, run.limits) as downloader:
        downloader.prepare(volumes, max(volume.size_bytes for volume in volumes))
        with show_progress("download", total, "MB") as progress:
            futures = {downloader.fetch(volume): volume for volume in volumes}
            done_bytes, found = 0, set()
            for future in as_completed(futures):
                if future.result():
                    found.add(futures[future].volume_name)
                done_bytes += futures[future].size_bytes
                progress.advance(done_bytes // 10**6 - progress.done, downloader.note())
                record_missing(run, downloader)
        downloader.check_offline()
    _withdraw_rejects(run, found)
    run.count_done = downloader.count_fetched
    run.detail = "; ".join(filter(None, (downloader.summary(), run.detail)))


def _withdraw_rejects(run: StageRun, found: set[str]) -> None:
    with store.read(run.data_root) as connection:
        rows = connection.execute("select item from current_rejects where stage = ?", [run.stage]).fetchall()
    row = {"stage": run.stage, "variant": run.variant, "fingerprint": "withdrawn", "is_withdrawn": True}
    if mended := [row | {"item": item} for (item,) in rows if item in found]:
        run.record("rejects", mended)
