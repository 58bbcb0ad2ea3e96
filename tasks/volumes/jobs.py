"""Conversion jobs: the volumes that make one shard."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctclip_model.config import VERSIONS, Recipe, compute_fingerprint
from ctclip_model.data.npz import ORIENTATION
from ctclip_model.data.shards import ShardRow
from ctclip_model.data.slabs import Encoding
from ctclip_model.errors import BadItemError, ConfigurationError
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.run.stage_run import StageRun, code_version
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
    common = {"recipe": compute_fingerprint(settings), VERSION: VERSIONS["convert"]}
    addresses = {one: parse_address(one) for one in ({source} if source else {row[1] for row in rows})}
    for name, recorded, path, size, sha256, x, y, z, storage, slope, intercept, revision in rows:
        # v2 files hold HU already: applying the metadata's rescaling again is the published code's fault
        if storage != "v1":
            slope, intercept = 1.0, 0.0
        orientation = storage.removeprefix("npz-") if storage.startswith("npz-") else ORIENTATION
        digest = compute_fingerprint(sha256, x, y, z, slope, intercept, orientation, settings, VERSIONS["convert"])
        own = {"file": sha256, "spacing": [x, y, z], "rescaling": [slope, intercept], "orientation": orientation}
        fingerprint = Fingerprint(digest, own | common)
        address = addresses[source or recorded]
        file = str(address.folder_of_files(data_root) / path)
        origin = f"{address}@{address.revision or revision or 'main'}" if address.is_hub else None
        volumes[name] = VolumeFile(
            name, fingerprint, file, size, sha256, (x, y, z), slope, intercept, orientation, origin
        )
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
