"""Shards: Arrow IPC files of converted volumes, read through a memory map. docs/shards.md describes the format.

A record batch holds one volume, cut into slabs of planes. The encoding `delta-zstd` keeps the differences between
neighbouring rows, low and high bytes apart, each compressed with zstd. The encoding `raw` keeps the int16 HU.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ctclip_model.config import Recipe
from ctclip_model.data.accelerators import crc32
from ctclip_model.data.shard_store import open_shard
from ctclip_model.data.slabs import COLUMNS, VOXEL, Encoding, decode_slab, encode_slab
from ctclip_model.errors import ShardError
from ctclip_model.files import whole_file
from ctclip_model.json_config import parse_config

if TYPE_CHECKING:
    from ctclip_model.data.volume import ConvertedVolume

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (start, stop) along depth, height, width

FORMAT_VERSION = "2"
OPEN_SHARDS = 128  # shards that stay open; each holds one of a process's (often 1,024) file descriptors
SLAB_VOXELS = 2**21  # 4 MiB: zstd and numpy run at full speed, and a slab fits a core's cache

FACTS = [
    pa.field("name", pa.string()),
    pa.field("source_sha256", pa.string()),
    pa.field("crc32", pa.uint32()),
    pa.field("spacing_mm", pa.list_(pa.float64(), 3)),
    pa.field("shape_in", pa.list_(pa.int32(), 3)),
    pa.field("window_start", pa.list_(pa.int32(), 3)),
    pa.field("window_stop", pa.list_(pa.int32(), 3)),
    pa.field("hu_mean", pa.float64()),
    pa.field("hu_std", pa.float64()),
    pa.field("hu_min", pa.int32()),
    pa.field("hu_max", pa.int32()),
    pa.field("spacing_note", pa.string()),
    pa.field("rescale_slope", pa.float64()),
    pa.field("rescale_intercept", pa.float64()),
]


@dataclass(frozen=True)
class ShardVolume:
    """A volume to be written to a shard."""

    name: str
    source_sha256: str
    converted: ConvertedVolume


@dataclass(frozen=True)
class ShardRow:
    """A volume's row in a shard, its checksum, and the facts of `ConvertedVolume`."""

    row_index: int
    name: str
    source_sha256: str
    crc32: int  # checksum of the voxels as little-endian int16 in C order
    spacing_mm: tuple[float, float, float]  # the source's, in its axis order
    shape_in: tuple[int, int, int]
    window_start: tuple[int, int, int]  # depth, height, width: voxels outside are padding
    window_stop: tuple[int, int, int]
    hu_mean: float
    hu_std: float
    hu_min: int
    hu_max: int
    spacing_note: str | None
    rescale_slope: float  # HU = slope x stored value + intercept
    rescale_intercept: float


def write_shard(
    path: Path,
    recipe: Recipe,
    volumes: Iterable[ShardVolume],
    *,
    encoding: Encoding = "delta-zstd",
    code_version: str = "",
) -> list[ShardRow]:
    """Writes volumes to a shard, one in memory at a time, and returns their rows. Without a volume, writes no file.

    The file is complete or absent. Raises `ShardError` for a volume that is not int16 of the recipe's shape, and the
    errors of the iterable `volumes`.
    """
    rows: list[ShardRow] = []
    schema = _schema(recipe, encoding, code_version)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = None
    with ExitStack() as stack:
        for volume in volumes:
            if writer is None:  # opened late, since a shard without volumes is no file
                writer = stack.enter_context(pa.ipc.new_file(stack.enter_context(whole_file(path)), schema))
            row, batch = _encode_volume(volume, len(rows), recipe, encoding, schema)
            writer.write_batch(batch)
            rows.append(row)
    return rows


def copy_volumes(volumes: Sequence[tuple[Path, int]], path: Path) -> None:
    """Copies volumes, each (shard, row), into one new shard without decoding them. The file is complete or absent.

    Raises `ShardError` for a volume that does not match its checksum, and for shards with different schemas.
    """
    with ExitStack() as stack:
        readers = {source: stack.enter_context(ShardReader(source, verify=True)) for source, _ in volumes}
        schema = readers[volumes[0][0]].schema
        writer = stack.enter_context(pa.ipc.new_file(stack.enter_context(whole_file(path)), schema))
        for source, row in volumes:
            if not readers[source].schema.equals(schema, check_metadata=True):
                raise ShardError(f"{source}: has another recipe, encoding or code version than {volumes[0][0]}")
            readers[source].read(row)
            writer.write_batch(readers[source].batch(row))


def read_volume(path: Path, row_index: int, *, verify: bool = False) -> np.ndarray:
    """Reads one volume of a shard, int16 HU (depth, height, width). A `ShardReader` is faster for several."""
    with ShardReader(path, verify=verify) as reader:
        return reader.read(row_index)


def read_into(
    path: Path | str,
    row_index: int,
    name: str,
    out: np.ndarray,
    planes: tuple[int, int] | None = None,
    verify: bool = False,
) -> None:
    """Reads one volume of a shard that stays open, or some planes of `split`, into their places in `out`.

    Raises `ShardError` where the volume is not the named one.
    """
    reader = _open_shard(path, verify)
    if planes is None:
        reader.read(row_index, out)
    else:
        reader.read_slab(row_index, *planes, out[slice(*planes)])
    reader.check_name(row_index, name)


class ShardReader:
    """A shard, mapped into memory. Opening it reads only its footer. Several threads may share a reader.

    A `path` that is a text is an address in a bucket, read by ranges: a volume takes one request.

    `verify` checks every complete volume that is read against its CRC. Raises `ShardError` for a file that is missing,
    damaged, or has another format.
    """

    def __init__(self, path: Path | str, *, verify: bool = False) -> None:
        self.path = path
        self.verify = verify
        try:
            self._map = pa.memory_map(str(path)) if isinstance(path, Path) else pa.PythonFile(open_shard(path), "r")
        except (OSError, pa.ArrowException) as error:
            raise ShardError(f"{path}: cannot be opened: {error}") from error
        try:
            self._reader = pa.ipc.open_file(self._map)
            self._read_schema(self._reader.schema)
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            self._map.close()
            is_fault = isinstance(path, str) and isinstance(error, OSError)
            what = "cannot be read" if is_fault else f"is not a complete shard of version {FORMAT_VERSION}"
            raise ShardError(f"{path}: {what}: {error}") from error

    def _read_schema(self, schema: pa.Schema) -> None:
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        if metadata["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {metadata['format_version']}")
        self.recipe = parse_config(Recipe, json.loads(metadata["recipe"]), "recipe")
        self.recipe_id = metadata["recipe_id"]
        self.code_version = metadata["code_version"]
        self.encoding: Encoding = "raw" if metadata["encoding"] == "raw" else "delta-zstd"
        self._slab_planes = int(metadata["slab_planes"])
        if not schema.equals(_schema(self.recipe, self.encoding, "")) or self._slab_planes < 1:
            raise ValueError(f"columns are {', '.join(schema.names)}")

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._map.close()

    def __len__(self) -> int:
        return int(self._reader.num_record_batches)

    @cached_property
    def names(self) -> list[str]:
        """The volumes' names, in the order of their rows."""
        columns = pa.ipc.IpcReadOptions(included_fields=[0])
        reader = pa.ipc.open_file(self._map, options=columns)
        return [reader.get_batch(row).column(0)[0].as_py() for row in range(len(self))]

    def check_name(self, row: int, name: str) -> None:
        """Raises `ShardError` where a row holds another volume, so that none is paired with another scan's report."""
        if self.names[row] != name:
            raise ShardError(f"{self.path}: row {row} holds {self.names[row]}, not {name}")

    def row(self, row: int) -> ShardRow:
        """A volume's checksum and facts."""
        batch = self.batch(row)
        facts = {field.name: batch.column(field.name)[0].as_py() for field in FACTS}
        tuples: dict[str, Any] = {name: tuple(fact) for name, fact in facts.items() if isinstance(fact, list)}
        return ShardRow(row_index=row, **(facts | tuples))

    def read(self, row: int, out: np.ndarray | None = None) -> np.ndarray:
        """Decodes a volume, int16 HU (depth, height, width), into `out` if given. Raises `ShardError` for damage."""
        batch = self.batch(row)
        depth, height, width = self.recipe.shape
        volume = self._decode(batch, ((0, depth), (0, height), (0, width)), out)
        if self.verify and crc32(volume.data) != batch.column("crc32")[0].as_py():
            raise ShardError(f"{self.path}: row {row} is damaged: its voxels do not match their checksum")
        return volume

    def split(self, count: int) -> list[tuple[int, int]]:
        """Divides a volume's planes into at most `count` parts, (start, stop) each, without cutting a slab."""
        depth = self.recipe.shape[0]
        planes = -(-depth // self._slab_planes // count) * self._slab_planes
        return [(start, min(start + planes, depth)) for start in range(0, depth, planes)]

    def read_slab(self, row: int, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Decodes planes start to stop of a volume, int16 HU (stop - start, height, width), and only their slabs."""
        _, height, width = self.recipe.shape
        return self.read_box(row, ((start, stop), (0, height), (0, width)), out)

    def read_box(self, row: int, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """Decodes a part of a volume, int16 HU, (start, stop) along each axis, and only its slabs."""
        if not all(0 <= start < stop <= side for (start, stop), side in zip(box, self.recipe.shape, strict=True)):
            raise ValueError(f"box {box} does not lie within a volume of {self.recipe.shape} voxels")
        return self._decode(self.batch(row), box, out)

    @property
    def schema(self) -> pa.Schema:
        """The schema of the record batches. Its metadata hold recipe, encoding and code version."""
        return self._reader.schema

    def batch(self, row: int) -> pa.RecordBatch:
        """A volume's record batch as stored."""
        if not 0 <= row < len(self):
            raise ShardError(f"{self.path}: has no row {row}, only rows 0 to {len(self) - 1}")
        try:
            batch = self._reader.get_batch(row)
            batch.validate(full=True)  # Arrow does not check offsets before it follows them
        except (OSError, pa.ArrowException) as error:
            raise ShardError(f"{self.path}: row {row} is damaged: {error}") from error
        return batch

    def _decode(self, batch: pa.RecordBatch, box: Box, out: np.ndarray | None) -> np.ndarray:
        (start, stop), *_ = box
        shape = tuple(last - first for first, last in box)
        out = np.empty(shape, VOXEL) if out is None else out
        if out.shape != shape or out.dtype != VOXEL or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, not contiguous int16 {shape}")
        planes_shape = self.recipe.shape[1:]
        rows, columns = (slice(*bounds) for bounds in box[1:])
        try:
            pieces = [batch.column(name)[0].values for name in COLUMNS[self.encoding]]
            for index in range(start // self._slab_planes, -(-stop // self._slab_planes)):
                first = index * self._slab_planes
                last = min(first + self._slab_planes, self.recipe.shape[0])
                target = out[max(first, start) - start : min(last, stop) - start]
                is_complete = target.shape == (last - first, *planes_shape)
                slab = target if is_complete else np.empty((last - first, *planes_shape), VOXEL)
                decode_slab([piece[index].as_buffer() for piece in pieces], slab)
                if not is_complete:
                    target[:] = slab[max(start - first, 0) : stop - first, rows, columns]
        except (OSError, pa.ArrowException, ValueError, IndexError) as error:
            raise ShardError(f"{self.path}: {batch.column('name')[0]} is damaged: {error}") from error
        return out


@lru_cache(maxsize=OPEN_SHARDS)
def _open_shard(path: Path | str, verify: bool) -> ShardReader:
    return ShardReader(path, verify=verify)


def _schema(recipe: Recipe, encoding: Encoding, code_version: str) -> pa.Schema:
    metadata = {
        "format_version": FORMAT_VERSION,
        "encoding": encoding,
        "slab_planes": str(_slab_planes(recipe)),
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "recipe_id": recipe.recipe_id,
        "code_version": code_version,
    }
    slabs = [pa.field(name, pa.list_(pa.binary())) for name in COLUMNS[encoding]]
    return pa.schema(FACTS + slabs, metadata)


def _slab_planes(recipe: Recipe) -> int:
    depth, height, width = recipe.shape
    return min(depth, max(1, SLAB_VOXELS // (height * width)))


def _encode_volume(
    volume: ShardVolume, row_index: int, recipe: Recipe, encoding: Encoding, schema: pa.Schema
) -> tuple[ShardRow, pa.RecordBatch]:
    converted = volume.converted
    if converted.voxels.shape != recipe.shape or converted.voxels.dtype.kind != "i" or converted.voxels.itemsize != 2:
        raise ShardError(
            f"{volume.name}: is {converted.voxels.dtype} {converted.voxels.shape}, not int16 {recipe.shape}"
        )
    voxels = np.ascontiguousarray(converted.voxels, VOXEL)
    starts, stops = zip(*converted.window, strict=True)
    row = ShardRow(
        row_index=row_index,
        name=volume.name,
        source_sha256=volume.source_sha256,
        crc32=crc32(voxels.data),
        spacing_mm=converted.spacing_mm,
        shape_in=converted.shape_in,
        window_start=starts,
        window_stop=stops,
        hu_mean=converted.hu_mean,
        hu_std=converted.hu_std,
        hu_min=converted.hu_min,
        hu_max=converted.hu_max,
        spacing_note=converted.spacing_note,
        rescale_slope=converted.rescale_slope,
        rescale_intercept=converted.rescale_intercept,
    )
    step = _slab_planes(recipe)
    slabs = [encode_slab(voxels[start : start + step], encoding) for start in range(0, len(voxels), step)]
    values = vars(row) | dict(zip(COLUMNS[encoding], zip(*slabs, strict=True), strict=True))
    arrays = [pa.array([values[field.name]], field.type) for field in schema]
    return row, pa.record_batch(arrays, schema=schema)
