"""An epoch of volumes: preprocessed sample by sample as published, and read from shards in each of our ways.

Usage: python benchmarks/bench_reading.py
WebDataset and LitData read the same arrays if they are installed. Neither is required.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from plain import load_volume_plainly
from torch.utils.data import DataLoader
from volumes import write_volume

from ctclip_model.config import Recipe
from ctclip_model.data.loader import BatchReader, SampleRef, VolumeDataset
from ctclip_model.data.shards import ShardVolume, write_shard
from ctclip_model.data.volume import convert_volume

VOLUMES, RUNS, WORKERS = 8, 3, 2
RECIPE = Recipe()


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "valid_1_a_1.nii.gz"
        write_volume(source, 512, 300)
        plain = median_s(lambda: load_volume_plainly(source, RECIPE))
        print(f"published preprocessing, a 512 x 512 x 300 volume: {plain:.2f} s")
        print(f"reading, per volume of an epoch of {VOLUMES}:")
        volume = ShardVolume("valid_1_a_1", "", convert_volume(source, recipe=RECIPE))
        for way, epoch in [*our_ways(folder, volume), *other_ways(folder, volume.converted.voxels)]:
            assert sum(1 for _ in epoch()) == VOLUMES  # also warms the pages
            seconds = median_s(lambda epoch=epoch: [touch(sample) for sample in epoch()]) / VOLUMES
            print(f"  {way:52} {seconds:6.3f} s {plain / seconds:6.1f} x")


def our_ways(folder: Path, volume: ShardVolume) -> list[tuple[str, Callable[[], Iterable[Any]]]]:
    ways: list[tuple[str, Callable[[], Iterable[Any]]]] = []
    for encoding in ("delta-zstd", "raw"):
        path = f"{encoding}.arrow"
        copies = (dataclasses.replace(volume, name=f"valid_{index}_a_1") for index in range(VOLUMES))
        samples = [
            SampleRef(row.name, path, row.row_index)
            for row in write_shard(folder / path, RECIPE, copies, encoding=encoding)
        ]
        dataset = VolumeDataset(samples, folder)
        read = BatchReader(dataset, threads=WORKERS)
        loader = DataLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True)
        ways += [
            (f"{encoding}, one process", lambda dataset=dataset: (dataset[index] for index in range(VOLUMES))),
            (
                f"{encoding}, {WORKERS} threads, reused buffers",
                lambda read=read: (read([index])[0] for index in range(VOLUMES)),
            ),
            (f"{encoding}, DataLoader with {WORKERS} workers", lambda loader=loader: loader),
        ]  # fmt: skip
    return ways


def other_ways(folder: Path, voxels: np.ndarray) -> list[tuple[str, Callable[[], Iterable[Any]]]]:
    """Other libraries that read the same int16 arrays, used as their manuals say."""
    found = {name: way for name, way in OTHERS.items() if importlib.util.find_spec(name)}
    missing = sorted(OTHERS.keys() - found.keys())
    if missing:
        print(f"  not compared, because not installed: {', '.join(missing)}", file=sys.stderr)
    return [(f"{name}, DataLoader with {WORKERS} workers", way(folder / name, voxels)) for name, way in found.items()]


def by_webdataset(folder: Path, voxels: np.ndarray) -> Callable[[], Iterable[Any]]:
    import webdataset

    folder.mkdir()
    for shard in range(WORKERS):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as writer:
            for index in range(shard, VOLUMES, WORKERS):
                writer.write({"__key__": f"valid_{index}_a_1", "voxels.npy": voxels})
    urls = [str(folder / f"{shard}.tar") for shard in range(WORKERS)]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("voxels.npy")
    return lambda: (sample[0] for sample in DataLoader(dataset, batch_size=None, num_workers=WORKERS))


def by_litdata(folder: Path, voxels: np.ndarray) -> Callable[[], Iterable[Any]]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes=2**30)
    for index in range(VOLUMES):
        writer[index] = {"voxels": torch.from_numpy(voxels)}
    writer.done()
    writer.merge()
    loader = StreamingDataLoader(StreamingDataset(str(folder)), batch_size=1, num_workers=WORKERS)
    return lambda: (batch["voxels"][0] for batch in loader)


OTHERS = {"webdataset": by_webdataset, "litdata": by_litdata}


def touch(sample: Any) -> int:
    """Reads a part of a sample, as its user would."""
    return int(sample[-1, -1, -1])


def median_s(function: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
