"""Processes that decode volumes for a GPU, into memory that they share with the process that starts its kernels."""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from joblib.externals.loky import get_reusable_executor, process_executor

from ctclip_model.data.shards import read_into

IDLE_S = 60.0  # after which a process ends, and with it the memory of batches that it maps
OPEN_BUFFERS = 2  # batches in turn


def count_reading_processes() -> int:
    """Processes that decode volumes for one GPU: its share of the machine's cores, sixteen at most."""
    gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(16, len(os.sched_getaffinity(0)) // gpus))


def share_memory(shape: tuple[int, ...]) -> np.memmap:
    """An int16 array that other processes map by its path, in memory that `/dev/shm` does not limit."""
    descriptor = os.memfd_create("ctclip-batch")
    os.ftruncate(descriptor, math.prod(shape) * 2)
    memory = np.memmap(f"/proc/{os.getpid()}/fd/{descriptor}", np.int16, "r+", shape=shape)
    weakref.finalize(memory, os.close, descriptor)
    return memory


def read_in_processes(
    rows: Sequence[tuple[Path | str, int, str]], parts: Sequence[tuple[int, int] | None], memory: np.memmap, *,
    processes: int, verify: bool = False,
) -> None:  # fmt: skip
    """Reads volumes into the first places of `share_memory` (B, depth, height, width).

    A row is a shard's path or address, a row index in it, and the name of the volume that it holds. Each process reads
    a whole volume (a part of None), or some planes of it. Raises as `read_into`.
    """
    path = str(memory.filename)
    inode = Path(path).stat().st_ino
    pool = get_reusable_executor(processes, timeout=IDLE_S, initializer=_allow_growth)
    waiting = [
        pool.submit(_read_row, row, planes, verify, (path, inode, memory.shape), place)
        for place, row in enumerate(rows)
        for planes in parts
    ]
    for future in waiting:
        future.result()


def _allow_growth() -> None:
    """Lets a process map any amount of memory. By default one that maps 300 MB counts as leaking and is replaced."""
    process_executor._USE_PSUTIL = False


def _read_row(
    row: tuple[Path | str, int, str], planes: tuple[int, int] | None, verify: bool,
    memory: tuple[str, int, tuple[int, ...]], place: int,
) -> None:  # fmt: skip
    read_into(*row, _map(*memory)[place], planes, verify)


@lru_cache(OPEN_BUFFERS)
def _map(path: str, inode: int, shape: tuple[int, ...]) -> np.ndarray:
    """Memory of another process, mapped once and as a whole: page by page that takes as long as decoding.

    The inode tells memory from a later one behind the same path.
    """
    with Path(path).open("r+b", buffering=0) as file:
        pages = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return np.frombuffer(pages, np.int16).reshape(shape)
