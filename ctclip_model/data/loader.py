"""Volumes read from shards for the model: int16 HU as stored, scaled on the device.

int16 takes half the memory of float32 between disk and device, and loses nothing.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ctclip_model.config import HU_PER_UNIT
from ctclip_model.data.reading_processes import count_reading_processes, read_in_processes, share_memory
from ctclip_model.data.shard_cache import ShardCache
from ctclip_model.data.shard_store import ShardStore
from ctclip_model.data.shards import OPEN_SHARDS, ShardReader
from ctclip_model.errors import ShardError

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SampleRef:
    """A volume's row in a shard. The shard's path is relative to the data root."""

    name: str
    shard_path: str
    row_index: int
    scan_id: str = ""


def read_samples(manifest: Path) -> list[SampleRef]:
    """Samples of a `manifest.parquet`, in its order."""
    columns = ["volume_name", "shard_path", "row_index", "scan_id"]
    return [SampleRef(*row.values()) for row in pq.read_table(manifest, columns=columns).to_pylist()]


def to_model_input(volumes: Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scales int16 HU (B, depth, height, width) to the model's input on the device, (B, 1, depth, height, width)."""
    scaled = volumes.to(device, non_blocking=True).to(torch.float32).div_(HU_PER_UNIT)
    return scaled.to(dtype).unsqueeze(1)


def copy_ahead(volumes: Tensor, device: torch.device) -> Tensor:
    """Copies volumes to a GPU on a stream of its own, beside the work of other threads, and returns when it is done.

    For a CPU the volumes come back as they are.
    """
    if device.type != "cuda":
        return volumes
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        copied = volumes.to(device, non_blocking=True)
    stream.synchronize()
    copied.record_stream(torch.cuda.default_stream(device))
    return copied


class VolumeDataset(Dataset[Tensor]):
    """Map-style data set: sample index to volume, int16 HU (depth, height, width).

    The `OPEN_SHARDS` shards used last stay mapped. Threads may share the data set, and DataLoader workers may be forked
    or spawned. `verify` checks each volume against its checksum. Raises `ShardError` for a row that holds another
    volume than the sample names.

    Shards are read from where `ShardStore` finds them, or from their copies in a `ShardCache` if the node has one.
    `in_order` reads the samples once, in their order.
    """

    def __init__(
        self, samples: Sequence[SampleRef], data_root: Path, *, verify: bool = False, in_order: bool = False
    ) -> None:
        self.samples = samples
        self.data_root = data_root
        self.verify = verify
        self.in_order = in_order
        self._forget()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self._read(index))

    def read_batch(self, indices: Sequence[int], *, threads: int = 1, out: Tensor | None = None) -> Tensor:
        """Reads volumes as one batch, int16 (B, depth, height, width), into `out` if given.

        Threads divide each volume among themselves, so that a batch of one uses them all too.
        """
        batch = np.empty((len(indices), *self.shape), np.int16) if out is None else out.numpy()
        in_file_order = sorted(range(len(indices)), key=lambda position: self._row(indices[position]))
        jobs = [(position, planes) for position in in_file_order for planes in self._split(indices[position], threads)]
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda job: self._read(indices[job[0]], batch[job[0]], job[1]), jobs):
                pass  # iterating raises the errors of the threads
        return torch.from_numpy(batch) if out is None else out

    def read_in_processes(self, indices: Sequence[int], memory: np.memmap, processes: int) -> None:
        """Reads volumes into the first places of `share_memory`. Where they are few, processes divide each."""
        samples = [self.samples[index] for index in indices]
        by_sample = [self._split(index, processes // max(1, len(samples))) for index in indices]

        def read() -> None:
            rows = [(self._locate(sample.shard_path), sample.row_index, sample.name) for sample in samples]
            read_in_processes(rows, min(by_sample, key=len), memory, processes=processes, verify=self.verify)

        self._reading_in_place_of_bad_copies(read, [sample.shard_path for sample in samples])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along depth, height, width, the same for every volume."""
        return self._reader(self.samples[0].shard_path).recipe.shape

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("samples", "data_root", "verify", "in_order")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._readers: OrderedDict[Path | str, ShardReader] = OrderedDict()
        self._lock = Lock()
        self._store = ShardStore.find(self.data_root)
        paths = (sample.shard_path for sample in self.samples)
        self._cache = ShardCache.find(self.data_root, paths, in_order=self.in_order)
        if self._cache is not None:
            weakref.finalize(self, self._cache.stop)

    def _locate(self, shard_path: str) -> Path | str:
        return (self._store if self._cache is None else self._cache).locate(shard_path)

    def _reading_in_place_of_bad_copies(self, read: Callable[[], Result], shard_paths: Sequence[str]) -> Result:
        """Reads, and again from the shards themselves if a copy of one is damaged or gone."""
        try:
            return read()
        except ShardError:
            if self._cache is None or not self._cache.forget(shard_paths):
                raise
        return read()

    def _reader(self, shard_path: str) -> ShardReader:
        path = self._locate(shard_path)
        with self._lock:
            reader = self._readers.get(path)
            if reader is None:
                reader = self._readers[path] = ShardReader(path, verify=self.verify)
            self._readers.move_to_end(path)
            if len(self._readers) > OPEN_SHARDS:
                self._readers.popitem(last=False)  # its map closes when the last thread has read
            return reader

    def _split(self, index: int, count: int) -> Sequence[tuple[int, int] | None]:
        """Parts of a volume for threads or processes. From a bucket each of them would read the whole volume."""
        shard_path = self.samples[index].shard_path
        if self.verify or count <= 1 or not isinstance(self._locate(shard_path), Path):
            return [None]
        return self._reader(shard_path).split(count)

    def _row(self, index: int) -> tuple[str, int]:
        return self.samples[index].shard_path, self.samples[index].row_index

    def _read(self, index: int, out: np.ndarray | None = None, planes: tuple[int, int] | None = None) -> np.ndarray:
        sample = self.samples[index]

        def read() -> np.ndarray:
            reader = self._reader(sample.shard_path)
            if out is None or planes is None:
                volume = reader.read(sample.row_index, out)
            else:
                volume = reader.read_slab(sample.row_index, *planes, out[slice(*planes)])
            reader.check_name(sample.row_index, sample.name)
            return volume

        return self._reading_in_place_of_bad_copies(read, [sample.shard_path])


class BatchReader:
    """Reads batches into memory that is used again: allocating fresh memory takes as long as decoding.

    Each thread has two buffers in turn, so that the next batch can be read while one is in use. A batch is overwritten
    by the second batch after it. With `processes` they decode, in place of threads: threads would hold up the thread
    that starts a GPU's kernels. `pinned` memory lets a GPU copy without waiting.
    """

    def __init__(self, dataset: VolumeDataset, *, threads: int = 1, processes: int = 0, pinned: bool = False) -> None:
        self.dataset, self.threads, self.processes, self.pinned = dataset, threads, processes, pinned
        self._thread_local = local()

    def __call__(self, indices: Sequence[int]) -> Tensor:
        buffers = self._thread_local.__dict__.setdefault("buffers", [])
        if len(buffers) < 2 or len(buffers[0]) < len(indices):
            buffers.append(self._allocate(len(indices)))
        else:
            buffers.append(buffers[0])
        del buffers[:-2]
        out = buffers[-1][: len(indices)]
        if self.processes:
            self.dataset.read_in_processes(indices, buffers[-1], self.processes)
        else:
            self.dataset.read_batch(indices, threads=self.threads, out=torch.from_numpy(out))
        return torch.from_numpy(out)

    def _allocate(self, count: int) -> np.ndarray:
        shape = (count, *self.dataset.shape)
        if not self.processes:
            return torch.empty(shape, dtype=torch.int16, pin_memory=self.pinned).numpy()
        memory = share_memory(shape)
        if self.pinned:
            pin(memory)
        return memory


def pin(memory: np.ndarray) -> None:
    """Keeps memory where a GPU can copy it without waiting, until the array is dropped."""
    address, driver = memory.ctypes.data, torch.cuda.cudart()
    status = driver.cudaHostRegister(address, memory.nbytes, 0)
    if int(status):
        raise RuntimeError(f"the GPU's driver cannot pin {memory.nbytes} bytes (CUDA error {int(status)})")
    weakref.finalize(memory, driver.cudaHostUnregister, address)


def iterate_batches(
    samples: Sequence[SampleRef],
    data_root: Path,
    *,
    batch_size: int,
    verify: bool = False,
    threads: int = 1,
    device: torch.device | None = None,
) -> Iterator[tuple[list[str], Tensor]]:
    """Yields names and int16 HU (B, 1, depth, height, width) on the device, by default the CPU, in the samples' order.

    Each thread reads one batch ahead. For a GPU all processes read the next batch.
    """
    dataset = VolumeDataset(samples, data_root, verify=verify, in_order=True)
    read_batch: Callable[[Sequence[int]], Tensor] = dataset.read_batch
    device = device or torch.device("cpu")
    if device.type == "cuda":
        read_batch = BatchReader(dataset, processes=count_reading_processes(), pinned=True)
        threads = 1

    def read(indices: range) -> tuple[list[str], Tensor]:
        names = [samples[index].name for index in indices]
        return names, copy_ahead(read_batch(indices), device).unsqueeze(1)

    starts = range(0, len(samples), batch_size)
    return _read_ahead(read, (range(start, min(start + batch_size, len(samples))) for start in starts), threads)


def _read_ahead(read: Callable[[Job], Result], jobs: Iterable[Job], threads: int) -> Iterator[Result]:
    """Yields results in the order of the jobs, with one job per thread running ahead."""
    with ThreadPoolExecutor(threads) as pool:
        reads: deque[Future[Result]] = deque()
        for job in jobs:
            reads.append(pool.submit(read, job))
            if len(reads) > threads:
                yield reads.popleft().result()
        while reads:
            yield reads.popleft().result()


class ScanSampler(Sampler[int]):
    """Samples every scan once an epoch, shuffled, by one of its reconstructions drawn at random.

    Reconstructions of a scan share one report, so two of them in a batch would be false negatives of each other. The
    order depends on seed and epoch alone. Each process takes its share of the same order. Shares are equally long: a
    few scans come twice.
    """

    def __init__(self, scan_ids: Sequence[str], *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        scans: dict[str, list[int]] = {}
        for index, scan_id in enumerate(scan_ids):
            scans.setdefault(scan_id, []).append(index)
        self.scans = list(scans.values())
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.scans) // self.world_size)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        drawn = [indices[generator.integers(len(indices))] for indices in self.scans]
        order = np.resize(generator.permutation(drawn), len(self) * self.world_size)
        return iter(order[self.rank :: self.world_size].tolist())
