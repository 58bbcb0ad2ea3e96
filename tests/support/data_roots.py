"""Data roots: sources ingested, downloaded and converted by the stages' own functions, without Prefect."""

from __future__ import annotations

import atexit
import dataclasses
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import dask
from distributed import LocalCluster

from ctclip_model.config import Recipe
from ctclip_model.data.shards import read_volume
from ctclip_model.data.slabs import Encoding
from ctclip_model.files import sha256_of
from support.volumes import COARSE
from tasks.run.dask_jobs import WITHOUT_PROFILER
from tasks.run.lost import find_lost_volumes
from tasks.run.pending import plan_items
from tasks.run.stage_run import open_run
from tasks.settings import LIMITS, Limits
from tasks.sources.changes import compare, read_current, source_row
from tasks.sources.local_source import LocalSource
from tasks.sources.open_source import Source
from tasks.volumes.convert import run_jobs
from tasks.volumes.download import choose_fitting, download_files, list_unconverted
from tasks.volumes.downloader import Downloader, DownloadOptions, count_raw_bytes
from tasks.volumes.jobs import make_jobs, read_volumes
from warehouse import store

# no waiting for a hub, two volumes a shard, and no limit to the share of rejects
QUICK = dataclasses.replace(LIMITS, hub_attempts=3, hub_wait_s=0.01, shard_volumes=2, reject_share=1.0)
THREADS = "threads"  # in place of a scheduler's address: a cluster of this process


@cache
def start_cluster() -> str:
    """Address of a Dask cluster of this process, one for all tests: worker processes take seconds to start."""
    with dask.config.set(WITHOUT_PROFILER), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's own
        cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    atexit.register(cluster.close)
    return str(cluster.scheduler_address)


def ingest(source: Path | Source, data_root: Path) -> None:
    """Records what differs between a source, or a folder in CT-RATE's layout, and the data root's catalogue."""
    opened = LocalSource(source, data_root) if isinstance(source, Path) else source
    with open_run(data_root, "ingest", opened.name) as run:
        revision, catalogue = opened.read()
        changes = compare(catalogue, read_current(data_root, False), opened.name, revision, opened.former_name)
        for table, changed in changes.rows.items():
            if changed:
                run.record(table, changed)
        run.record("sources", [source_row(opened, revision, catalogue, changes)])


def convert(
    data_root: Path,
    recipe: Recipe = COARSE,
    encoding: Encoding = "delta-zstd",
    address: str | None = THREADS,
    limits: Limits = QUICK,
    **download_options: Any,
) -> dict[str, Any]:
    """Converts pending volumes, downloading those of a hub. Returns the run's summary and counts of downloads.

    The work is done by a thread, or by a Dask cluster: one at an address, or, for None, one of new processes.
    """
    options = DownloadOptions(**download_options)
    with (
        open_run(data_root, "convert", recipe.recipe_id, limits=limits) as run,
        Downloader(data_root, options, None, limits) as downloader,
    ):
        volumes = read_volumes(data_root, recipe, None)
        wanted = {name: one.fingerprint for name, one in volumes.items()}
        lost = find_lost_volumes(data_root, recipe.recipe_id, wanted)
        pending = plan_items(run, recipe.recipe_id, wanted, lost=lost)
        jobs = make_jobs(run, recipe, [volumes[name] for name in pending], encoding, options.bound_bytes)
        remote = [volumes[name] for name in pending if volumes[name].origin]
        if remote:
            downloader.prepare(remote, max(count_raw_bytes(job.volumes) for job in jobs))
        run_jobs(run, jobs, start_cluster() if address == THREADS else address, downloader if remote else None)
        downloader.check_offline()
    return run.summary() | {"fetched": downloader.count_fetched, "reused": downloader.count_reused}


def download(data_root: Path, recipe: Recipe = COARSE, **download_options: Any) -> dict[str, Any]:
    """Fetches volumes that are not converted into `raw/`. Returns the run's summary."""
    options = DownloadOptions(**download_options)
    with open_run(data_root, "download", limits=QUICK) as run:
        volumes = list(list_unconverted(run, recipe, read_volumes(data_root, recipe, None), False).values())
        if fitting := choose_fitting(run, volumes, options):
            download_files(run, fitting, options, None)
    return run.summary()


def list_converted(data_root: Path) -> dict[str, tuple[str, int]]:
    """Shard path and row index of each converted volume. A volume that has two current rows is a failure."""
    rows = store.query(data_root, "select volume_name, shard_path, row_index from current_shard_volumes")
    assert len(rows) == len({name for name, _, _ in rows})
    return {name: (path, row) for name, path, row in rows}


def count_volumes(data_root: Path) -> int:
    """Number of volumes in the catalogue."""
    ((count,),) = store.query(data_root, "select count(*) from current_volumes")
    return int(count)


def list_reasons(data_root: Path, *, permanent: bool = False) -> list[str]:
    """Reasons of the current rejects: those that a rerun may mend, or the permanent ones."""
    rows = store.query(
        data_root, "select reason from current_rejects where is_permanent = ? order by item", [permanent]
    )
    return [reason for (reason,) in rows]


def assert_every_volume_is_converted(data_root: Path, recipe: Recipe = COARSE) -> None:
    """Each volume has one current row and the right checksum, and nothing temporary is left."""
    rows = list_converted(data_root)
    assert len(rows) == count_volumes(data_root)
    for path, row in rows.values():
        assert read_volume(data_root / path, row, verify=True).shape == recipe.shape
    assert not list(data_root.rglob("*.tmp"))


def raw_files(data_root: Path) -> list[Path]:
    return sorted((data_root / "raw/dataset").rglob("*.nii.gz"))


def assert_same_files(data_root: Path, phantoms: Path, missing: int = 0) -> None:
    """Every volume except `missing` ones is in `raw/` with the right hash, and no partial file is left."""
    found = raw_files(data_root)
    assert len(found) == len(list(phantoms.rglob("*.nii.gz"))) - missing
    for path in found:
        assert sha256_of(path) == sha256_of(phantoms / path.relative_to(data_root / "raw"))
    assert not list((data_root / "raw/.partial").iterdir())
