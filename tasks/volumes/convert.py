"""Conversion jobs: which volumes make a shard, what one job does on a worker, and what of it is recorded."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ctclip_model.config import Recipe, compute_fingerprint
from ctclip_model.data.shards import ShardRow, ShardVolume, write_shard
from ctclip_model.data.volume import compile_kernels, convert_volume
from ctclip_model.errors import BadItemError, CTCLIPError, VolumeError
from tasks.run.dask_jobs import fan_out
from tasks.run.deadline import run_with_deadline
from tasks.run.logs import log_context
from tasks.run.progress import show_progress
from tasks.run.stage_run import StageRun
from tasks.settings import count_workers
from tasks.volumes.downloader import Downloader, record_missing
from tasks.volumes.jobs import ConversionJob, ConversionResult, VolumeFile


def run_jobs(
    run: StageRun, jobs: Sequence[ConversionJob], dask_address: str | None, downloader: Downloader | None = None
) -> None:
    """Fans the jobs out, each when its files have been downloaded, and records each as it ends."""
    if not jobs:
        return
    if dask_address is None:
        compile_kernels()
    waiting, started, done_bytes = list(jobs), time.monotonic(), 0
    with show_progress("convert", sum(len(job.volumes) for job in jobs), "volumes") as progress:
        while waiting:
            following: list[ConversionJob] = []
            ready = downloader.ready(waiting) if downloader else waiting
            workers = min(count_workers(), len(waiting))
            for job, outcome in fan_out(convert_job, ready, address=dask_address, workers=workers, limits=run.limits):
                if isinstance(outcome, BaseException):
                    following += recover_job(run, job, outcome)
                else:
                    record_result(run, job, outcome)
                    done_bytes += sum(volume.size_bytes for volume in job.volumes)
                    rate = f"{done_bytes / 1e9 / (time.monotonic() - started):.2f} GB/s"
                    progress.advance(len(job.volumes), f"{rate}, {downloader.note()}" if downloader else rate)
                if downloader:
                    downloader.release(job.volumes)  # what has to be done again is fetched again: it is rare
                    record_missing(run, downloader)
                run.publish_if_due()
            waiting = following
    if downloader:
        record_missing(run, downloader)


def convert_job(job: ConversionJob) -> ConversionResult:
    """What a worker does: converts a job's volumes, one in memory at a time, into one shard."""
    result = ConversionResult()
    job.path.parent.mkdir(parents=True, exist_ok=True)
    result.rows = write_shard(
        job.path, job.recipe, _converted(job, result), encoding=job.encoding, code_version=job.code_version
    )
    if result.rows:
        result.size_bytes = job.path.stat().st_size
    return result


def _converted(job: ConversionJob, result: ConversionResult) -> Iterator[ShardVolume]:
    for volume in job.volumes:
        try:
            with log_context(item=volume.volume_name):
                converted = run_with_deadline(job.volume_timeout_s, partial(convert_file, volume, job.recipe))
            yield converted
        except TimeoutError as error:
            result.rejects.append(VolumeError(volume.volume_name, "timed_out", f"{volume.path}: {error}"))
        except BadItemError as error:
            result.rejects.append(VolumeError(volume.volume_name, error.reason, error.detail))


def convert_file(volume: VolumeFile, recipe: Recipe) -> ShardVolume:
    """Converts one file; raises `VolumeError` for one that is bad, or is not the one that was ingested."""
    path = Path(volume.path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise VolumeError(volume.volume_name, "missing_file", f"{path} cannot be read: {error.strerror}") from error
    if size != volume.size_bytes:
        raise VolumeError(
            volume.volume_name, "changed_since_ingest",
            f"{path} has {size} bytes, {volume.size_bytes} when it was ingested; ingest again",
        )  # fmt: skip
    converted = convert_volume(
        path, spacing_mm=volume.spacing_mm, slope=volume.slope, intercept=volume.intercept, recipe=recipe,
        orientation=volume.orientation,
    )  # fmt: skip
    return ShardVolume(volume.volume_name, volume.sha256, converted)


def recover_job(run: StageRun, job: ConversionJob, error: BaseException) -> list[ConversionJob]:
    """The jobs that replace one that failed as a whole; a single volume that killed its workers is a reject."""
    if isinstance(error, CTCLIPError | OSError):
        raise error  # a full disk or our own mistake: no volume is to blame, and the next job would fail alike
    if len(job.volumes) == 1:
        volume = job.volumes[0]
        detail = f"{type(error).__name__}: {error}"[:500]
        reason = "killed_worker" if type(error).__name__ == "KilledWorker" else "conversion_failed"
        problem = VolumeError(volume.volume_name, reason, detail)
        run.reject(problem, fingerprint=volume.fingerprint, is_permanent=False)  # another machine may manage
        return []
    middle = len(job.volumes) // 2
    halves = (("a", job.volumes[:middle]), ("b", job.volumes[middle:]))
    return [
        dataclasses.replace(job, path=job.path.with_stem(job.path.stem + suffix), volumes=part)
        for suffix, part in halves
    ]


def record_result(run: StageRun, job: ConversionJob, result: ConversionResult) -> None:
    """Records a finished shard, its volumes and its rejects."""
    fingerprints = {volume.volume_name: volume.fingerprint for volume in job.volumes}
    path = str(job.path.relative_to(run.data_root))
    recipe_id = job.recipe.recipe_id
    if result.rejects:
        temporary = {"changed_since_ingest", "missing_file", "timed_out"}  # mended otherwise than by another file
        for is_permanent in (True, False):
            errors = [(e, fingerprints[e.item]) for e in result.rejects if (e.reason not in temporary) is is_permanent]
            if errors:
                run.reject_all(errors, is_permanent=is_permanent)
    if not result.rows:
        return
    shard: dict[str, Any] = {
        "shard_path": path, "recipe_id": recipe_id,
        "fingerprint": compute_fingerprint([fingerprints[row.name] for row in result.rows]),
        "size_bytes": result.size_bytes, "count_volumes": len(result.rows),
    }  # fmt: skip
    run.record("shards", [shard])
    run.record("shard_volumes", [_volume_record(row, path, recipe_id, fingerprints[row.name]) for row in result.rows])
    run.count_done += len(result.rows)


def _volume_record(row: ShardRow, path: str, recipe_id: str, fingerprint: str) -> dict[str, Any]:
    return {
        "volume_name": row.name, "recipe_id": recipe_id, "fingerprint": fingerprint, "shard_path": path,
        "row_index": row.row_index, "source_sha256": row.source_sha256, "crc32": row.crc32, "hu_mean": row.hu_mean,
        "hu_std": row.hu_std, "hu_min": row.hu_min, "hu_max": row.hu_max, "spacing_x_mm": row.spacing_mm[0],
        "spacing_y_mm": row.spacing_mm[1], "spacing_z_mm": row.spacing_mm[2], "shape_in": list(row.shape_in),
        "spacing_note": row.spacing_note,
    }  # fmt: skip
