"""Conversion jobs: the volumes that make one shard."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctclip_model.config import VERSIONS, Recipe, compute_fingerprint, fingerprint_each
from ctclip_model.data.npz_axes import ORIENTATION
from ctclip_model.data.shards import ShardRow
from ctclip_model.data.slabs import Encoding
from ctclip_model.errors import BadItemError, ConfigurationError, MissingInputError
from tasks.run.code_version import code_version
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.run.stage_run import StageRun
from tasks.settings import LIMITS, count_workers
from tasks.sources.address import parse_address
from warehouse import store

# bytes on the disk per voxel of a shard, for estimates
SHARD_BYTES_PER_VOXEL: dict[Encoding, float] = {"delta-zstd": 0.6, "raw": 2.0}


@dataclass(frozen=True)
class VolumeFile:
    """A volume to convert, with the facts that its file does not hold."""

    volume_name: str
    fingerprint: str
    path: str
    size_bytes: int
    sha256: str | None
    spacing_mm: tuple[float | None, float | None, float | None]  # mm along the first, second and third array axis
    slope: float
    intercept: float
    orientation: str = ORIENTATION  # axes of a RAD-ChestCT array; `header` or a code of a NIfTI that is turned to LPS
    stated_shape: tuple[int | None, int | None, int | None] = (None, None, None)  # columns, rows, slices of the table
    origin: str | None = None  # hf://…@COMMIT, or address of a bucket, of a volume that is downloaded to `path`
    checksum: str | None = None  # MD5, ETag or time of change of an object in a bucket


@dataclass(frozen=True)
class ConversionJob:
    """Volumes to convert into one shard."""

    recipe: Recipe
    path: Path  # shard to write
    volumes: tuple[VolumeFile, ...]
    code_version: str
    encoding: Encoding = "delta-zstd"
    volume_timeout_s: float = LIMITS.volume_timeout_s


@dataclass
class ConversionResult:
    """A job's shard and its rejects."""

    rows: list[ShardRow] = field(default_factory=list)  # volumes in the order of the shard
    rejects: list[BadItemError] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # columns of `shard_volumes` by volume
    size_bytes: int = 0  # size of the shard, 0 without one: every volume is a reject


def read_volumes(data_root: Path, recipe: Recipe, source: str | None) -> dict[str, VolumeFile]:
    """Every current volume with a file, by name. `source` is another address of the files than the ingested one."""
    rows = read_rows(data_root)
    return make_volumes(data_root, rows, fingerprint_volumes(rows, recipe), source)


def read_rows(data_root: Path) -> list[tuple[Any, ...]]:
    """A row for each current volume with a file, for `fingerprint_volumes` and `make_volumes`."""
    return store.query(data_root, store.load_sql(__package__, "convertible_volumes"))


def fingerprint_volumes(rows: Sequence[tuple[Any, ...]], recipe: Recipe) -> dict[str, str]:
    """Fingerprint of each volume's conversion, by the volume's name."""
    settings = dataclasses.asdict(recipe)
    hashed = [_list_hashed(sha256 or checksum, *facts) for _, _, _, _, sha256, checksum, *facts in rows]
    digests = fingerprint_each((), [*zip(*hashed, strict=True)], (settings, VERSIONS["convert"]))
    common = {"recipe": compute_fingerprint(settings), VERSION: VERSIONS["convert"]}
    return {
        row[0]: Fingerprint(
            digest,
            common
            | {"file": content, "spacing": (x, y, z), "rescaling": (slope, intercept), "orientation": orientation},
        )
        for row, (content, x, y, z, slope, intercept, orientation), digest in zip(rows, hashed, digests, strict=True)
    }


def make_volumes(
    data_root: Path, rows: Sequence[tuple[Any, ...]], fingerprints: Mapping[str, str], source: str | None
) -> dict[str, VolumeFile]:
    """Volumes of the rows that have one of the fingerprints, by name."""
    addresses = {text: parse_address(text) for text in ({source} if source else {row[1] for row in rows})}
    volumes = {}
    for name, recorded, path, size, sha256, checksum, *facts in rows:
        if name not in fingerprints:
            continue
        _, x, y, z, slope, intercept, orientation = _list_hashed("", *facts)
        *_, revision, columns, lines, slices = facts
        address = addresses[source or recorded]
        origin = None
        if address.is_remote:
            origin = f"{address}@{address.revision or revision or 'main'}" if address.is_hub else str(address)
        volumes[name] = VolumeFile(
            name, fingerprints[name], str(address.volumes_folder(data_root) / path), size, sha256, (x, y, z), slope,
            intercept, orientation, (columns, lines, slices), origin, checksum,
        )  # fmt: skip
    return volumes


def _list_hashed(
    content: str, x: float | None, y: float | None, z: float | None, storage: str, slope: float, intercept: float,
    *others: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Facts of a volume that its fingerprint hashes: content, spacings, rescaling and orientation."""
    # v2 files hold HU already: the published code rescales them a second time by mistake
    if not storage.startswith("v1"):
        slope, intercept = 1.0, 0.0
    orientation = storage.partition("-")[2] or ORIENTATION  # `npz-zyx`, `v2-header`
    return content, x, y, z, slope, intercept, orientation


def check_folders(data_root: Path, source: str | None, volumes: Sequence[VolumeFile]) -> None:
    """Raises `MissingInputError` if the folder that volumes are to be read from is not there, as before a mount."""
    texts = {source} if source else {text for (text,) in store.query(data_root, "select source from current_sources")}
    for address in map(parse_address, texts):
        folder = Path(address.location)
        is_gone = not address.is_remote and not folder.is_dir()
        if is_gone and any(Path(volume.path).is_relative_to(folder) for volume in volumes):
            raise MissingInputError(f"{folder} is not there: mount it, or name its present address with --source")


def make_jobs(
    run: StageRun,
    recipe: Recipe,
    volumes: Sequence[VolumeFile],
    encoding: Encoding = "delta-zstd",
    raw_bytes: float = math.inf,
) -> list[ConversionJob]:
    """Splits volumes into jobs: shards of about `shard_bytes`, and enough jobs for every worker.

    `raw_bytes` is the bound of the downloads. A job takes a share that leaves room for the jobs beside it.
    """
    if not volumes:
        return []
    fitting = int(run.limits.shard_bytes / (math.prod(recipe.shape) * SHARD_BYTES_PER_VOXEL[encoding]))
    # small jobs with downloads: the first one starts when all of its volumes are there
    jobs_per_worker = 16 if any(volume.origin for volume in volumes) else 4
    share = math.ceil(len(volumes) / (jobs_per_worker * count_workers()))
    size = max(1, min(fitting, run.limits.shard_volumes, share))
    folder = run.data_root / "shards" / recipe.recipe_id
    for leftover in folder.glob(".*.tmp"):  # half a shard of a killed run: the lease's holder is the only writer
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
    """Raises `ConfigurationError` if the shards of `count` volumes do not fit on the disk."""
    needed = count * math.prod(recipe.shape) * SHARD_BYTES_PER_VOXEL[encoding]
    free = shutil.disk_usage(data_root).free
    if needed > free:
        raise ConfigurationError(
            f"{count} volumes make shards of about {needed / 1e9:.3g} GB and {data_root} has {free / 1e9:.3g} GB free: "
            "make room (`ctclip gc` lists unused files), or convert a part with --limit or --split"
        )


def _split(volumes: Sequence[VolumeFile], count: int, room: float) -> Iterator[tuple[VolumeFile, ...]]:
    """Splits volumes into parts of at most `count` volumes and `room` bytes of downloads, but at least one volume."""
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
