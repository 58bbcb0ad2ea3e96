"""Share of a training's time that waits for volumes: shards of a slow store read in place, and through the cache.

The store is an HTTP server on loopback with a bound on its rate and a delay before each answer. A step takes a fixed
time in place of a GPU's work, and the next batch is read meanwhile, as in training. Each epoch reads every volume once,
in random order. The load is the rate that the steps need, as a share of the store's.

Usage: python benchmarks/bench_shard_cache.py
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from measure import machine

from ctclip_model.config import Recipe
from ctclip_model.data.loader import SampleRef, VolumeDataset
from ctclip_model.data.shard_cache import FOLDER_VARIABLE
from ctclip_model.data.shard_store import BUCKET_VARIABLE
from ctclip_model.data.shards import ShardVolume, write_shard
from ctclip_model.data.volume import ConvertedVolume

RATE_BYTES_PER_S, DELAY_S, BLOCK_BYTES = 60e6, 0.02, 1 << 18
SHARDS, VOLUMES_A_SHARD, EPOCHS, BATCH = 6, 8, 4, 4
LOADS = (0.5, 0.8, 1.5)
RECIPE = Recipe(name="bench", shape=(120, 240, 240))


class Store:
    """Files of a folder over HTTP, by ranges, all answers together at a bounded rate."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent_bytes = folder, 0
        self._free_at, self._lock = 0.0, threading.Lock()

    @contextmanager
    def running(self) -> Iterator[str]:
        """The address."""
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                store.answer(self, has_body=False)

            def do_GET(self) -> None:
                store.answer(self, has_body=True)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()

    def answer(self, request: BaseHTTPRequestHandler, *, has_body: bool) -> None:
        time.sleep(DELAY_S)
        path = self.folder / request.path.lstrip("/")
        size = path.stat().st_size
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        start, stop = (int(span[1]), min(int(span[2]) + 1, size)) if span else (0, size)
        request.send_response(206 if span else 200)
        if span:
            request.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(stop - start))
        request.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            for first in range(start, stop if has_body else start, BLOCK_BYTES):
                block = file.read(min(BLOCK_BYTES, stop - first))
                self._wait(len(block))
                request.wfile.write(block)

    def _wait(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count
            self._free_at = max(self._free_at, time.monotonic()) + count / RATE_BYTES_PER_S
            wait_s = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait_s))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = write_samples(folder / "store")
        total = sum(path.stat().st_size for path in (folder / "store").rglob("*.arrow"))
        store = Store(folder / "store")
        print(f"{machine()}; {len(samples)} volumes, {total / 1e6:.0f} MB at {RATE_BYTES_PER_S / 1e6:.0f} MB/s")
        with store.running() as address:
            os.environ[BUCKET_VARIABLE] = address
            for load in LOADS:
                step_s = BATCH * total / len(samples) / RATE_BYTES_PER_S / load
                for way in ("in place", "cache"):
                    os.environ[FOLDER_VARIABLE] = str(folder / f"cache-{load}") if way == "cache" else ""
                    report(f"load {load:.0%}, {way}", store, folder / "root", samples, step_s)


def write_samples(folder: Path) -> list[SampleRef]:
    """Shards of voxels that no codec could make smaller, without one."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(SHARDS):
        path = f"shards/bench/{number}.arrow"
        volumes = [make_volume(f"train_{number}_{index}_1", rng) for index in range(VOLUMES_A_SHARD)]
        rows = write_shard(folder / path, RECIPE, volumes, encoding="raw")
        samples += [SampleRef(row.name, path, row.row_index) for row in rows]
    return samples


def make_volume(name: str, rng: np.random.Generator) -> ShardVolume:
    voxels = rng.integers(-1000, 1000, RECIPE.shape, np.int16)
    whole = tuple((0, side) for side in RECIPE.shape)
    return ShardVolume(name, "", ConvertedVolume(voxels, RECIPE.spacing_mm, RECIPE.shape, whole, 0, 1, -1000, 999))


def report(label: str, store: Store, root: Path, samples: list[SampleRef], step_s: float) -> None:
    """Prints each epoch's share of waiting, and the bytes that the store has sent for it."""
    dataset, shares = VolumeDataset(samples, root), []
    for epoch in range(EPOCHS):
        before = store.sent_bytes
        share = train(dataset, np.random.default_rng(epoch), step_s)
        shares.append(f"{share:.1%} ({(store.sent_bytes - before) / 1e6:.0f} MB)")
    print(f"{label}: waits by epoch {', '.join(shares)}", flush=True)


def train(dataset: VolumeDataset, rng: np.random.Generator, step_s: float) -> float:
    """The share of an epoch's time that waits for volumes."""
    order = rng.permutation(len(dataset)).reshape(-1, BATCH).tolist()
    read: Callable[[list[int]], object] = lambda indices: dataset.read_batch(indices, threads=BATCH)  # noqa: E731
    waited_s, started = 0.0, time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(read, order[0])
        for batch in [*order[1:], None]:
            asked = time.perf_counter()
            future.result()
            waited_s += time.perf_counter() - asked
            if batch is not None:
                future = pool.submit(read, batch)
            time.sleep(step_s)
    return waited_s / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
