"""Conversion jobs: which volumes make a shard, what one job does on a worker, and what of it is recorded."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ctclip_model.config import VERSIONS, Recipe, fingerprint
from ctclip_model.data.npz import ORIENTATION
from ctclip_model.data.shards import ShardRow, ShardVolume, write_shard
from ctclip_model.data.slabs import Encoding
from ctclip_model.data.volume import compile_kernels, convert_volume
from ctclip_model.errors import BadItemError, ConfigurationError, CTCLIPError, VolumeError
from tasks.deadline import within
from tasks.downloads import Downloader
from tasks.fanout import fan_out
from tasks.logs import log_context
from tasks.marks import VERSION, Mark
from tasks.progress import show_progress
from tasks.runs import StageRun, code_version
from tasks.settings import LIMITS, count_workers
from tasks.sources.address import parse_address
from warehouse import store

SHARD_BYTES_A_VOXEL: dict[Encoding, float] = {"delta-zstd": 0.6, "raw": 2.0}


@dataclass(frozen=True)
class VolumeFile:
    """A volume to convert, and all that its file does not say."""

    volume_name: str
    fingerprint: str
    path: str
    size_bytes: int
    sha256: str
    spacing_mm: tuple[float | None, float | None, float | None]  # first, second, third array axis
    slope: float
    intercept: float
    orientation: str = ORIENTATION  # of RAD-ChestCT's arrays
    origin: str | None = None  # hf://…@COMMIT where `path` is to be downloaded from


@dataclass(frozen=True)
class ConversionJob:
    """A shard to be written."""

    recipe: Recipe
    path: Path
    volumes: tuple[VolumeFile, ...]
    code_version: str
    encoding: Encoding = "delta-zstd"
    volume_timeout_s: float = LIMITS.volume_timeout_s


@dataclass
class ConversionResult:
    """What a job made: the shard's rows, in order, and the volumes that it refused."""

    rows: list[ShardRow] = field(default_factory=list)
    rejects: list[BadItemError] = field(default_factory=list)
    size_bytes: int = 0


def read_volumes(data_root: Path, recipe: Recipe, source: str | None) -> dict[str, VolumeFile]:
    """Every current volume that has a file, by name; `source` overrides where files lie now."""
    with store.read(data_root) as connection:
        rows = connection.execute(
            "select volume_name, volumes.source, path, size_bytes, sha256, spacing_x_mm, spacing_y_mm, spacing_z_mm, "
            "volumes.storage, rescale_slope, rescale_intercept, sources.revision from current_volumes as volumes "
            "left join current_sources as sources on sources.source = volumes.source "
            "where sha256 is not null order by all"
        ).fetchall()
    volumes, settings = {}, dataclasses.asdict(recipe)  # once: it is most of a fingerprint's time
    common = {"recipe": fingerprint(settings), VERSION: VERSIONS["convert"]}
    addresses = {one: parse_address(one) for one in ({source} if source else {row[1] for row in rows})}
    for name, recorded, path, size, sha256, x, y, z, storage, slope, intercept, revision in rows:
        # v2 files hold HU already: applying the metadata's rescaling again is the published code's fault
        if storage != "v1":
            slope, intercept = 1.0, 0.0
        orientation = storage.removeprefix("npz-") if storage.startswith("npz-") else ORIENTATION
        digest = fingerprint(sha256, x, y, z, slope, intercept, orientation, settings, VERSIONS["convert"])
        own = {"file": sha256, "spacing": [x, y, z], "rescaling": [slope, intercept], "orientation": orientation}
        mark = Mark(digest, own | common)
        address = addresses[source or recorded]
        file = str(address.folder_of_files(data_root) / path)
        origin = f"{address}@{address.revision or revision or 'main'}" if address.is_hub else None
        volumes[name] = VolumeFile(name, mark, file, size, sha256, (x, y, z), slope, intercept, orientation, origin)
    return volumes


def make_jobs(
    run: StageRun,
    recipe: Recipe,
    volumes: Sequence[VolumeFile],
    encoding: Encoding = "delta-zstd",
    raw_bytes: float = math.inf,
) -> list[ConversionJob]:
    """Splits volumes into shards of about `shard_bytes`, and into enough jobs for every worker.

    Of `raw_bytes`, the room for downloads, a job takes a share that leaves some for those that run beside it.
    """
    if not volumes:
        return []
    fitting = int(run.limits.shard_bytes / (math.prod(recipe.shape) * SHARD_BYTES_A_VOXEL[encoding]))
    jobs_a_worker = 16 if any(volume.origin for volume in volumes) else 4  # the first waits for all of its downloads
    share = math.ceil(len(volumes) / (jobs_a_worker * count_workers()))
    size = max(1, min(fitting, run.limits.shard_volumes, share))
    folder = run.data_root / "shards" / recipe.recipe_id
    for leftover in folder.glob(".*.tmp"):  # of a killed run: whoever holds the lease is the only writer
        leftover.unlink()
    room = raw_bytes / (run.limits.jobs_in_flight_per_worker * count_workers() + 1)
    parts = list(_split(volumes, size, room))
    return [
        ConversionJob(
            recipe, folder / f"{run.run_id}-{number:06d}.arrow", part, code_version(), encoding,
            run.limits.volume_timeout_s,
        )
        for number, part in enumerate(parts)
    ]  # fmt: skip


def check_room(data_root: Path, count: int, recipe: Recipe, encoding: Encoding) -> None:
    """Raises `ConfigurationError` where the shards of so many volumes would not fit on the disk."""
    needed = count * math.prod(recipe.shape) * SHARD_BYTES_A_VOXEL[encoding]
    free = shutil.disk_usage(data_root).free
    if needed > free:
        raise ConfigurationError(
            f"{count} volumes make shards of about {needed / 1e9:.3g} GB; {data_root} has {free / 1e9:.3g} GB free: "
            "make room (`ctclip gc` lists what nothing needs), or convert a part of it by --limit or --split"
        )


def _split(volumes: Sequence[VolumeFile], count: int, room: float) -> Iterator[tuple[VolumeFile, ...]]:
    """Parts of `count` volumes at most whose downloads fit in `room` bytes, but never of none."""
    part: list[VolumeFile] = []
    held = 0
    for volume in volumes:
        size = volume.size_bytes if volume.origin else 0
        if part and (len(part) == count or held + size > room):
            yield tuple(part)
            part, held = [], 0
        part.append(volume)
        held += size
    yield tuple(part)


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


def record_missing(run: StageRun, downloader: Downloader) -> None:
    """Records the volumes that could not be downloaded; a rerun tries them again."""
    errors = []
    while downloader.rejects:
        volume, error = downloader.rejects.popleft()
        errors.append((error, volume.fingerprint))
    if errors:
        run.reject_all(errors, is_permanent=False)


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
                converted = within(job.volume_timeout_s, partial(convert_file, volume, job.recipe))
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
        dataclasses.replace(job, path=job.path.with_stem(job.path.stem + mark), volumes=part) for mark, part in halves
    ]


def record_result(run: StageRun, job: ConversionJob, result: ConversionResult) -> None:
    """Records a finished shard, its volumes and its rejects."""
    marks = {volume.volume_name: volume.fingerprint for volume in job.volumes}
    path = str(job.path.relative_to(run.data_root))
    recipe_id = job.recipe.recipe_id
    if result.rejects:
        temporary = {"changed_since_ingest", "missing_file", "timed_out"}  # mended otherwise than by another file
        for is_permanent in (True, False):
            errors = [(e, marks[e.item]) for e in result.rejects if (e.reason not in temporary) is is_permanent]
            if errors:
                run.reject_all(errors, is_permanent=is_permanent)
    if not result.rows:
        return
    shard: dict[str, Any] = {
        "shard_path": path, "recipe_id": recipe_id,
        "fingerprint": fingerprint([marks[row.name] for row in result.rows]),
        "size_bytes": result.size_bytes, "count_volumes": len(result.rows),
    }  # fmt: skip
    run.record("shards", [shard])
    run.record("shard_volumes", [_volume_record(row, path, recipe_id, marks[row.name]) for row in result.rows])
    run.count_done += len(result.rows)


def _volume_record(row: ShardRow, path: str, recipe_id: str, mark: str) -> dict[str, Any]:
    return {
        "volume_name": row.name, "recipe_id": recipe_id, "fingerprint": mark, "shard_path": path,
        "row_index": row.row_index, "source_sha256": row.source_sha256, "crc32": row.crc32, "hu_mean": row.hu_mean,
        "hu_std": row.hu_std, "hu_min": row.hu_min, "hu_max": row.hu_max, "spacing_x_mm": row.spacing_mm[0],
        "spacing_y_mm": row.spacing_mm[1], "spacing_z_mm": row.spacing_mm[2], "shape_in": list(row.shape_in),
        "spacing_note": row.spacing_note,
    }  # fmt: skip
