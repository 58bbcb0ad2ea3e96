"""Downloads against `curl` of the same files, and a conversion with downloads against one without.

A hub on loopback serves the files from its own process. Our downloads also check each file's SHA-256.

Usage: python benchmarks/bench_download.py
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measure import in_turn, machine  # noqa: E402

FILES, THREADS, RUNS = 64, 4, 3
SHAPE, SPACING_MM = (512, 512, 60), (0.7, 0.7, 1.5)
REPOSITORY = "owner/CT-RATE"


def serve(folder: Path) -> None:
    """Runs the hub's process. It prints its address, and ends when its input ends."""
    from support.hub import LoopbackHub

    with LoopbackHub(folder.parent / "store").running() as hub:
        hub.repository(REPOSITORY).commit(folder)
        print(hub.endpoint, flush=True)
        sys.stdin.read()


def make_volumes(folder: Path) -> list[str]:
    """Writes volumes of half a CT's size, which compress as a CT does. Returns their paths."""
    rng = np.random.default_rng(0)
    voxels = (rng.normal(0, 20, SHAPE) + 400 * np.sin(np.arange(SHAPE[0]) / 40)[:, None, None]).astype(np.int16)
    content = nib.Nifti1Image(voxels, np.diag([*SPACING_MM, 1.0])).to_bytes()
    names = [f"valid_{patient}_a_1" for patient in range(1, FILES + 1)]
    paths = []
    for number, name in enumerate(names):
        path = folder / "dataset/valid_fixed" / name.rsplit("_", 2)[0] / name.rsplit("_", 1)[0] / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(content, 1, mtime=number))
        paths.append(str(path.relative_to(folder)))
    table = folder / "dataset/metadata/validation_metadata.csv"
    table.parent.mkdir(parents=True)
    rows = "".join(f'{name}.nii.gz,"[{SPACING_MM[0]}, {SPACING_MM[1]}]",{SPACING_MM[2]}\n' for name in names)
    table.write_text(f"VolumeName,XYSpacing,ZSpacing\n{rows}")
    return paths


def compare(folder: Path, paths: list[str], endpoint: str) -> None:
    from ctclip_model.config import published
    from tasks.run.stage_run import open_run
    from tasks.sources.address import parse_address
    from tasks.sources.changes import INGESTED
    from tasks.sources.changes import compare as compare_catalogues
    from tasks.sources.hub_source import HubSource
    from tasks.volumes.convert import run_jobs
    from tasks.volumes.downloader import Downloader, DownloadOptions, count_raw_bytes
    from tasks.volumes.jobs import make_jobs, read_volumes

    recipe, data_root = published().recipe, folder.parent / "data"
    source = HubSource(parse_address(f"hf://datasets/{REPOSITORY}"), data_root)
    with open_run(data_root, "ingest", source.name) as run:
        revision, catalogue = source.read()
        changes = compare_catalogues(catalogue, {table: {} for table in INGESTED}, source.name, revision)
        for table, rows in changes.rows.items():
            if rows:
                run.record(table, rows)
    volumes = list(read_volumes(data_root, recipe, None).values())
    gigabytes = count_raw_bytes(volumes) / 1e9

    def drop_raw() -> None:
        shutil.rmtree(data_root / "raw/dataset/valid_fixed", ignore_errors=True)

    def ours(rate_mb_per_s: float | None = None) -> None:
        drop_raw()
        options = DownloadOptions(threads=THREADS, keep_raw=True, max_mb_per_s=rate_mb_per_s)
        with Downloader(data_root, options) as downloader:
            assert all(downloader.pool.map(downloader.fetch, volumes))

    def curl() -> None:
        shutil.rmtree(folder.parent / "curl", ignore_errors=True)
        urls = "".join(f"{endpoint}/datasets/{REPOSITORY}/resolve/main/{path}\n" for path in paths)
        command = ["xargs", "-P", str(THREADS), "-n", "1", "curl", "-sfL", "--create-dirs", "--output-dir",
                   str(folder.parent / "curl"), "-O"]  # fmt: skip
        subprocess.run(command, input=urls, text=True, check=True)

    def convert(rate_mb_per_s: float | None = None) -> None:
        with open_run(data_root, "convert", recipe.recipe_id) as run:
            options = DownloadOptions(threads=THREADS, keep_raw=True, max_mb_per_s=rate_mb_per_s)
            with Downloader(data_root, options) as downloader:
                run_jobs(run, make_jobs(run, recipe, volumes), None, downloader)
                assert run.count_done == len(volumes)

    times = in_turn({"ours": ours, "curl": curl}, RUNS)
    print(f"{machine()}: {len(volumes)} files, {gigabytes:.2f} GB, {THREADS} threads, medians of {RUNS}")
    print(f"  curl {gigabytes / times['curl']:.2f} GB/s, ours {gigabytes / times['ours']:.2f} GB/s")
    print(f"  ratio ours / curl: {times['curl'] / times['ours']:.2f}")

    conversion_s = in_turn({"convert": convert}, 1)["convert"]  # all files are on disk already
    rate = gigabytes * 1e3 / conversion_s  # MB/s: downloads then take as long as the conversion
    started = time.perf_counter()
    ours(rate)
    download_s = time.perf_counter() - started
    drop_raw()
    started = time.perf_counter()
    convert(rate)
    both_s = time.perf_counter() - started
    print(f"  convert {conversion_s:.1f} s, download at {rate:.0f} MB/s {download_s:.1f} s, both {both_s:.1f} s")
    print(f"  ratio of both to the slower one: {both_s / max(conversion_s, download_s):.2f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "source"
        folder.mkdir()
        paths = make_volumes(folder)
        command = [sys.executable, __file__, "serve", str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hub:
            assert hub.stdout is not None
            endpoint = os.environ["HF_ENDPOINT"] = hub.stdout.readline().strip()
            compare(folder, paths, endpoint)
            hub.communicate()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]))
    else:
        main()
