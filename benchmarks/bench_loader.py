"""Training batches from shards, against the bare decoding of the shards and against NIfTI files in the loop.

The feed does what a training does before a step. It orders the samples, decodes each into its row of the batch, and
reads the next batch meanwhile. The first two batches are not measured, because decoding into fresh memory takes twice
as long. Later batches reuse that memory. Bare decoding reads the same rows in the shards' order with as many threads.

Usage: python benchmarks/bench_loader.py
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from measure import in_turn, machine, seconds
from plain import load_volume_plainly
from volumes import write_volume

from ctclip_model.config import Recipe
from ctclip_model.data.loader import BatchReader, SampleRef, VolumeDataset
from ctclip_model.data.reading_processes import count_reading_processes
from ctclip_model.data.shards import ShardReader, ShardVolume, write_shard
from ctclip_model.data.volume import convert_volume
from ctclip_model.training.engine.loop import read_ahead
from ctclip_model.training.samples import READING_THREADS, BatchOrder

VOLUMES, EPOCHS, RUNS = 16, 3, 5
BATCHES = (8, 1)  # volumes a process: the published batch on one process, and VocabFine or eight processes
RECIPE = Recipe()


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "train_0_a_1.nii.gz"
        write_volume(source, 512, 300)
        volume = ShardVolume("train_0_a_1", "", convert_volume(source, recipe=RECIPE))
        copies = (dataclasses.replace(volume, name=f"train_{index}_a_1") for index in range(VOLUMES))
        rows = write_shard(folder / "0.arrow", RECIPE, copies)
        samples = [SampleRef(row.name, "0.arrow", row.row_index, row.name[:-2]) for row in rows]
        dataset, reader = VolumeDataset(samples, folder), ShardReader(folder / "0.arrow")
        buffers = [np.empty(RECIPE.shape, np.int16) for _ in range(READING_THREADS)]

        def decode() -> None:
            def every(first: int) -> None:
                for row in range(first, EPOCHS * VOLUMES, READING_THREADS):
                    touch(reader.read(row % VOLUMES, buffers[first]))

            with ThreadPoolExecutor(READING_THREADS) as pool:
                list(pool.map(every, range(READING_THREADS)))

        decoding_s: list[float] = []
        feeding_s: dict[tuple[int, int], list[float]] = {
            (batch, processes): [] for batch in BATCHES for processes in (0, count_reading_processes())
        }
        for run in range(RUNS + 1):
            for (size, processes), times in feeding_s.items():
                times.append(feed(dataset, size, processes))
            decoding_s.append(seconds(decode) / EPOCHS / VOLUMES)
            if run == 0:
                for times in (decoding_s, *feeding_s.values()):
                    times.clear()
        nifti_s = in_turn({"plain": lambda: load_volume_plainly(source, RECIPE)}, RUNS)["plain"]
        decode_s = statistics.median(decoding_s)
        print(f"volumes of {' x '.join(map(str, RECIPE.shape))}, {machine()}, medians of {RUNS}")
        print(f"  shards, decoded and dropped       {1 / decode_s:7.2f} volumes/s")
        print(f"  NIfTI decoded in the loop         {1 / nifti_s:7.2f} volumes/s")
        for (size, processes), times in feeding_s.items():
            feed_s = statistics.median(times)
            way = f"batches of {size}, {processes or READING_THREADS} {'processes' if processes else 'threads'}"
            print(
                f"  {way:33} {1 / feed_s:7.2f} volumes/s, {decode_s / feed_s:.0%} of decoding, "
                f"{nifti_s / feed_s:.1f} x NIfTI"
            )


def feed(dataset: VolumeDataset, size: int, processes: int) -> float:
    """Seconds per volume in batches of `size` volumes, decoded by threads, or by processes as beside a GPU."""
    read = BatchReader(dataset, threads=READING_THREADS, processes=processes)
    order = BatchOrder([sample.scan_id for sample in dataset.samples], size, seed=0)
    steps = read_ahead(lambda step: read(order.batch(step)), 0, 2 + EPOCHS * order.batches)
    for _ in range(2):
        touch(next(steps)[1].numpy())
    started = time.perf_counter()
    for _, batch, _, _ in steps:
        touch(batch.numpy())
    return (time.perf_counter() - started) / (EPOCHS * order.batches * size)


def touch(volumes: np.ndarray) -> int:
    """Reads a part of each volume, as a user would."""
    return int(volumes[..., -1, -1].sum())


if __name__ == "__main__":
    main()
