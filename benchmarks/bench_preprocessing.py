"""One CT volume: the published preprocessing, ours, and reading it back from a shard, side by side.

Usage: python benchmarks/bench_preprocessing.py [slices]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from plain import load_volume_plainly

from ctclip_model.config import Recipe
from ctclip_model.data.shards import ShardReader, ShardVolume, write_shard
from ctclip_model.data.volume import convert_volume

RUNS = 3


def main() -> None:
    slices = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    torch.set_num_threads(1)
    recipe = Recipe()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "valid_1_a_1.nii.gz"
        write_volume(path, slices)
        shard = Path(folder) / "shard.arrow"
        write_shard(shard, recipe, [ShardVolume("valid_1_a_1", "", convert_volume(path, recipe=recipe))])
        ours = convert_volume(path, recipe=recipe).voxels / 1000
        assert np.abs(ours - load_volume_plainly(path, recipe).numpy()[0]).max() < 5.1e-4
        with ShardReader(shard) as reader:
            plain = median_s(lambda: load_volume_plainly(path, recipe))
            convert = median_s(lambda: convert_volume(path, recipe=recipe))
            read = median_s(lambda: reader.read(0))
    print(f"512 x 512 x {slices}, one thread, median of {RUNS}")
    print(f"  plain preprocessing  {plain:7.2f} s")
    print(f"  our conversion       {convert:7.2f} s   {plain / convert:6.1f} x")
    print(f"  reading from a shard {read:7.3f} s   {plain / read:6.1f} x")


def write_volume(path: Path, slices: int) -> None:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(0, 8, (512, 512, slices)), axis=0)
    values = np.clip(smooth + rng.normal(0, 20, smooth.shape), -1024, 3000).astype(np.int16)
    image = nib.Nifti1Image(values, np.eye(4))
    image.header.set_zooms((0.7, 0.7, 1.5))
    nib.save(image, path)


def median_s(function: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
