"""Converts volumes: fans conversion jobs out to Dask workers and records the shards that they write."""

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
from ctclip_model.files import sha256_of
from tasks.run.dask_jobs import fan_out
from tasks.run.deadline import run_with_deadline
from tasks.run.logs import log_context
from tasks.run.progress import show_progress
from tasks.run.stage_run import StageRun
from tasks.settings import count_workers
from tasks.volumes.downloader import Downloader
from tasks.volumes.jobs import ConversionJob, ConversionResult, VolumeFile

SOURCE_FACTS = ("header_orientation", "count_blank_slices", "count_repeated_slices")  # recorded beside the shard's row
TEMPORARY = {"changed_since_ingest", "missing_file", "timed_out"}  # reasons that may pass without another file


def run_jobs(
    run: StageRun, jobs: Sequence[ConversionJob], dask_address: str | None, downloader: Downloader | None = None
) -> None:
    """Converts the jobs' volumes on Dask workers and records each job when it ends.

    A job that fails is split in two, and the halves run after the others. A volume that fails alone is a reject. With
    a downloader, a job starts when its files are there, and they are dropped when it ends.
    """
    if not jobs:
        return
    if dask_address is None:
        compile_kernels()  # once, into the cache that the local workers read
    started, done_bytes, waiting = time.monotonic(), 0, list(jobs)
    with show_progress("convert", sum(len(job.volumes) for job in jobs), "volumes") as progress:
        while waiting:
            halves: list[ConversionJob] = []
            for job, outcome in _fan_out_jobs(run, waiting, dask_address, downloader):
                if isinstance(outcome, BaseException):
                    halves += recover_job(run, job, outcome)
                else:
                    record_result(run, job, outcome)
                    done_bytes += sum(volume.size_bytes for volume in job.volumes)
                    rate = f"{done_bytes / 1e9 / (time.monotonic() - started):.2f} GB/s"
                    progress.advance(len(job.volumes), f"{rate}, {downloader.note()}" if downloader else rate)
            waiting = halves


def _fan_out_jobs(
    run: StageRun, jobs: Sequence[ConversionJob], dask_address: str | None, downloader: Downloader | None
) -> Iterator[tuple[ConversionJob, ConversionResult | BaseException]]:
    """Yields each job with its outcome. Once the caller has recorded it, drops the job's files and publishes if due."""
    ready = downloader.fetch_jobs(jobs) if downloader else jobs
    workers = min(count_workers(), len(jobs))
    for job, outcome in fan_out(convert_job, ready, address=dask_address, workers=workers, limits=run.limits):
        yield job, outcome
        if downloader:
            downloader.release(job.volumes)  # a half of a failed job downloads its files again: failures are rare
            downloader.record_rejects(run)
        run.publish_if_due()
    if downloader:
        downloader.record_rejects(run)


def convert_job(job: ConversionJob) -> ConversionResult:
    """Converts a job's volumes, one in memory at a time, into one shard. Runs on a Dask worker."""
    result = ConversionResult()
    job.path.parent.mkdir(parents=True, exist_ok=True)
    result.rows = write_shard(
        job.path, job.recipe, _convert_volumes(job, result), encoding=job.encoding, code_version=job.code_version
    )
    if result.rows:
        result.size_bytes = job.path.stat().st_size
    return result


def _convert_volumes(job: ConversionJob, result: ConversionResult) -> Iterator[ShardVolume]:
    """Yields the job's converted volumes and adds those that cannot be converted to the result's rejects."""
    for volume in job.volumes:
        try:
            with log_context(item=volume.volume_name):
                converted = run_with_deadline(job.volume_timeout_s, partial(convert_file, volume, job.recipe))
            result.facts[volume.volume_name] = {fact: getattr(converted.converted, fact) for fact in SOURCE_FACTS}
            yield converted
        except TimeoutError as error:
            result.rejects.append(VolumeError(volume.volume_name, "timed_out", f"{volume.path}: {error}"))
        except BadItemError as error:
            result.rejects.append(VolumeError(volume.volume_name, error.reason, error.detail))


def convert_file(volume: VolumeFile, recipe: Recipe) -> ShardVolume:
    """Converts one file. Raises `VolumeError` for a bad file, and for one whose size changed since it was ingested."""
    path = Path(volume.path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise VolumeError(volume.volume_name, "missing_file", f"{path} cannot be read: {error.strerror}") from error
    if size != volume.size_bytes:
        raise VolumeError(
            volume.volume_name, "changed_since_ingest",
            f"{path} has {size} bytes and had {volume.size_bytes} when it was ingested: run `ctclip ingest`",
        )  # fmt: skip
    converted = convert_volume(
        path, spacing_mm=volume.spacing_mm, slope=volume.slope, intercept=volume.intercept, recipe=recipe,
        orientation=volume.orientation, stated_shape=volume.stated_shape,
    )  # fmt: skip
    return ShardVolume(volume.volume_name, volume.sha256 or sha256_of(path), converted)


def recover_job(run: StageRun, job: ConversionJob, error: BaseException) -> list[ConversionJob]:
    """Splits a failed job in two jobs, or records its only volume as a reject and returns no job.

    Raises the error if no volume is to blame for it: a full disk, or a wrong configuration.
    """
    if isinstance(error, CTCLIPError | OSError):
        raise error  # every other job would fail alike
    if len(job.volumes) == 1:
        volume = job.volumes[0]
        detail = f"{type(error).__name__}: {error}"[:500]
        reason = "killed_worker" if type(error).__name__ == "KilledWorker" else "conversion_failed"
        problem = VolumeError(volume.volume_name, reason, detail)
        run.reject(problem, fingerprint=volume.fingerprint, is_permanent=False)  # a larger machine may convert it
        return []
    middle = len(job.volumes) // 2
    halves = (("a", job.volumes[:middle]), ("b", job.volumes[middle:]))
    return [
        dataclasses.replace(job, path=job.path.with_stem(job.path.stem + suffix), volumes=part)
        for suffix, part in halves
    ]


def record_result(run: StageRun, job: ConversionJob, result: ConversionResult) -> None:
    """Records a job's shard, its volumes and its rejects."""
    fingerprints = {volume.volume_name: volume.fingerprint for volume in job.volumes}
    for is_permanent in (True, False):
        errors = [
            (error, fingerprints[error.item])
            for error in result.rejects
            if (error.reason not in TEMPORARY) is is_permanent
        ]
        if errors:
            run.reject_all(errors, is_permanent=is_permanent)
    if not result.rows:
        return
    path, recipe_id = str(job.path.relative_to(run.data_root)), job.recipe.recipe_id
    shard: dict[str, Any] = {
        "shard_path": path, "recipe_id": recipe_id,
        "fingerprint": compute_fingerprint([fingerprints[row.name] for row in result.rows]),
        "size_bytes": result.size_bytes, "count_volumes": len(result.rows),
    }  # fmt: skip
    run.record("shards", [shard])
    rows = [
        _volume_record(row, path, recipe_id, fingerprints[row.name]) | result.facts.get(row.name, {})
        for row in result.rows
    ]
    run.record("shard_volumes", rows)
    run.count_done += len(result.rows)


def _volume_record(row: ShardRow, path: str, recipe_id: str, fingerprint: str) -> dict[str, Any]:
    return {
        "volume_name": row.name, "recipe_id": recipe_id, "fingerprint": fingerprint, "shard_path": path,
        "row_index": row.row_index, "source_sha256": row.source_sha256, "crc32": row.crc32, "hu_mean": row.hu_mean,
        "hu_std": row.hu_std, "hu_min": row.hu_min, "hu_max": row.hu_max, "spacing_x_mm": row.spacing_mm[0],
        "spacing_y_mm": row.spacing_mm[1], "spacing_z_mm": row.spacing_mm[2], "shape_in": list(row.shape_in),
        "spacing_note": row.spacing_note,
    }  # fmt: skip
