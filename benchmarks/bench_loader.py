"""What feeds a training: batches from shards, against the shards' bare decoding and against NIfTI files in the loop.

The feed does all that training does before a step: the order of the samples, each decoded into its place in the batch,
the next batch meanwhile. Bare decoding reads the same rows in the shards' order, in as many threads, and drops them.

Usage: python benchmarks/bench_loader.py
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from measure import in_turn, machine
from plain import load_volume_plainly
from volumes import write_volume

from ctclip_model.config import Recipe
from ctclip_model.data.loader import BatchReader, SampleRef, VolumeDataset
from ctclip_model.data.shards import ShardReader, ShardVolume, write_shard
from ctclip_model.data.volume import convert_volume
from ctclip_model.training.loop import read_ahead
from ctclip_model.training.samples import READING_THREADS, BatchOrder

VOLUMES, BATCH, EPOCHS, RUNS = 16, 8, 3, 3
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
        read = BatchReader(dataset, threads=READING_THREADS)
        order = BatchOrder([sample.scan_id for sample in samples], BATCH, seed=0)
        buffers = [np.empty(RECIPE.shape, np.int16) for _ in range(READING_THREADS)]

        def feed() -> None:
            def batch_of(step: int) -> torch.Tensor:
                return read(order.batch(step))

            for _, batch, _, _ in read_ahead(batch_of, 0, EPOCHS * order.batches):
                touch(batch.numpy())

        def decode() -> None:
            def every(first: int) -> None:
                for row in range(first, EPOCHS * VOLUMES, READING_THREADS):
                    touch(reader.read(row % VOLUMES, buffers[first]))

            with ThreadPoolExecutor(READING_THREADS) as pool:
                list(pool.map(every, range(READING_THREADS)))

        seconds = in_turn({"decode": decode, "feed": feed}, RUNS)
        nifti = in_turn({"plain": lambda: load_volume_plainly(source, RECIPE)}, RUNS)["plain"]
        print(f"volumes of {' x '.join(map(str, RECIPE.shape))}, batches of {BATCH}, {machine()}, medians of {RUNS}")
        print(f"  shards, decoded and dropped  {EPOCHS * VOLUMES / seconds['decode']:7.2f} volumes/s")
        share = seconds["decode"] / seconds["feed"]
        print(
            f"  the feed of a training       {EPOCHS * VOLUMES / seconds['feed']:7.2f} volumes/s, {share:.0%} of that"
        )
        ratio = nifti * EPOCHS * VOLUMES / seconds["feed"]
        print(f"  NIfTI decoded in the loop    {1 / nifti:7.2f} volumes/s, of which the feed is {ratio:.1f} x")


def touch(volumes: np.ndarray) -> int:
    """Reads something of each, as a user would."""
    return int(volumes[..., -1, -1].sum())


if __name__ == "__main__":
    main()
