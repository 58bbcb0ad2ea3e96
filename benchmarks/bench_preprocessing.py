"""One CT volume on one thread: the published preprocessing, our conversion, and reading it back from a shard.

Usage: python benchmarks/bench_preprocessing.py [in-plane size] [slices]
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch
from plain import load_volume_plainly
from volumes import write_volume

from ctclip_model.config import Recipe
from ctclip_model.data.accelerators import gzip_member
from ctclip_model.data.nifti import CHUNK_BYTES
from ctclip_model.data.shards import ShardReader, ShardVolume, write_shard
from ctclip_model.data.volume import convert_volume

RUNS = 5
RECIPE = Recipe()
MIB = 2**20


def main() -> None:
    side, slices = (int(argument) for argument in (sys.argv[1:] + ["512", "300"][len(sys.argv) - 1 :]))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "valid_1_a_1.nii.gz"
        write_volume(path, side, slices)
        print(f"{side} x {side} x {slices}, {path.stat().st_size / 1e6:.0f} MB, one thread, medians of {RUNS}")
        compare(path, Path(folder))
        own = subprocess.run([sys.executable, __file__, "memory", path], capture_output=True, text=True, check=True)
        print(f"  peak memory, without Python and its libraries: {own.stdout.strip()}")


def compare(path: Path, folder: Path) -> None:
    """Prints the time of every way, and its ratio to the plain way."""
    plain_voxels = load_volume_plainly(path, RECIPE).numpy()[0]
    assert np.abs(convert_volume(path, recipe=RECIPE).voxels / 1000 - plain_voxels).max() < 5.1e-4
    shard, raw = folder / "shard.arrow", folder / "raw.arrow"
    volume = ShardVolume("valid_1_a_1", "", convert_volume(path, recipe=RECIPE))
    write_shard(shard, RECIPE, [volume])
    write_shard(raw, RECIPE, [volume], encoding="raw")
    out = np.zeros(RECIPE.shape, np.int16)  # fresh pages would cost as much as decoding

    def convert_and_write() -> None:
        write_shard(shard, RECIPE, [ShardVolume("valid_1_a_1", "", convert_volume(path, recipe=RECIPE))])

    plain, inflating, *ours = medians_s(
        lambda: load_volume_plainly(path, RECIPE),
        lambda: inflate(path),
        lambda: convert_volume(path, recipe=RECIPE),
        convert_and_write,
        *(lambda reader=reader: reader.read(0, out) for reader in (
            ShardReader(shard), ShardReader(shard, verify=True), ShardReader(raw), ShardReader(raw, verify=True)
        )),
    )  # fmt: skip
    print(f"  {'plain preprocessing':34} {plain:7.3f} s")
    print(f"  {'inflating alone':34} {inflating:7.3f} s")
    names = ("our conversion", "our conversion, encoded and written", "read", "read and verified", "read, uncompressed",
             "read, uncompressed and verified")  # fmt: skip
    for name, seconds in zip(names, ours, strict=True):
        print(f"  {name:35} {seconds:6.3f} s {plain / seconds:6.1f} x")
    print(f"  our conversion takes {ours[0] / inflating:.2f} times as long as inflating alone")
    print(f"  {shard.stat().st_size / 1e6:.1f} MB in the shard, {raw.stat().st_size / 1e6:.1f} MB uncompressed")


def inflate(path: Path) -> None:
    member = gzip_member()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            member.decompress(chunk)


def medians_s(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function. They take turns, so that other work on the machine slows all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(RUNS):
        for function, taken in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def print_memory(path: Path) -> None:
    """Prints the peak memory of a conversion above the memory before it, encoding and writing included."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.nii.gz"
        write_volume(small, 64, 20)
        for source in (small, path):  # the small volume loads all libraries
            before = psutil.Process().memory_info().rss
            write_shard(Path(folder) / "a.arrow", RECIPE, [ShardVolume("a", "", convert_volume(source, recipe=RECIPE))])
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(f"{int(peak[1]) / 1024 - before / MIB:.0f} MiB")


if __name__ == "__main__":
    print_memory(Path(sys.argv[2])) if sys.argv[1:2] == ["memory"] else main()
