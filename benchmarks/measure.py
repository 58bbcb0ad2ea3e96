"""Timing and memory of ways that do the same work, measured in turn in one process."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Way = Callable[[], object]


def in_turn(ways: Mapping[str, Way], runs: int) -> dict[str, float]:
    """Median seconds of each way, after one uncounted run. The ways take turns, so that a busy spell hits them all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            duration_s = seconds(way)
            if run:
                times[name].append(duration_s)
    return {name: statistics.median(values) for name, values in times.items()}


def seconds(way: Way) -> float:
    """Seconds of one call, the GPU's work included."""
    synchronize()
    started = time.perf_counter()
    way()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(way: Way) -> int:
    """Peak memory of one call above the memory held before it, on the GPU if there is one, else of the process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_bytes("VmRSS")
    way()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def machine() -> str:
    """Name of the GPU, or the processor and its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{torch.get_num_threads()} threads of {name}"
