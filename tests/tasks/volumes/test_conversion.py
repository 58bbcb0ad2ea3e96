"""Conversion jobs: after a kill and a rerun, every volume is in exactly one current shard row, undamaged."""

from __future__ import annotations

import dataclasses
import gzip
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import dask
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from support.data_roots import assert_every_volume_is_converted, convert, count_volumes, ingest
from support.processes import kill_after, start_python, wait_for
from support.volumes import COARSE

from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.data.shards import ShardReader
from ctclip_model.errors import ConfigurationError
from tasks.run.dask_jobs import WITHOUT_PROFILER
from tasks.run.progress import REPORTER, LogReporter
from tasks.volumes.jobs import check_room
from warehouse import store


@pytest.fixture
def source(few_phantoms: Path, tmp_path: Path) -> Path:
    """A copy, for tests that change it."""
    return Path(shutil.copytree(few_phantoms, tmp_path / "source"))


@pytest.fixture
def data_root(source: Path, tmp_path: Path) -> Path:
    ingest(source, tmp_path / "data")
    return tmp_path / "data"


KILLED_AFTER_ITS_FIRST_SHARD = """
import dataclasses, os, signal, sys
from pathlib import Path
from support.data_roots import QUICK, convert
from tasks.volumes import convert as conversion

def record_and_die(*arguments):
    record(*arguments)
    os.killpg(0, signal.SIGKILL)  # the workers too

if __name__ == "__main__":
    record, conversion.record_result = conversion.record_result, record_and_die
    convert(Path(sys.argv[1]), address=None, limits=dataclasses.replace(QUICK, publish_interval_s=0.0))
"""


def test_killed_conversion_goes_on_where_it_stopped(data_root):
    child = start_python(KILLED_AFTER_ITS_FIRST_SHARD, data_root, start_new_session=True)
    errors = child.communicate()[1]
    assert child.returncode == -signal.SIGKILL, errors
    records = data_root / "records" / "shard_volumes"
    (record,) = records.glob("*.parquet")
    run_id = record.stem.rpartition("-")[0]
    (records / f".{run_id}-000099.parquet.1.tmp").write_bytes(b"half")
    (data_root / "shards" / COARSE.recipe_id / ".half-written.arrow.tmp").write_bytes(b"half")
    assert convert(data_root)["done"] == count_volumes(data_root) - pq.read_metadata(record).num_rows
    assert_every_volume_is_converted(data_root)


def test_shards_that_would_not_fit_are_refused(tmp_path):
    check_room(tmp_path, 10, COARSE, "delta-zstd")
    with pytest.raises(ConfigurationError, match=r"make shards of about .* GB and .* GB free: make room"):
        check_room(tmp_path, 10**12, COARSE, "delta-zstd")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_conversion_killed_at_any_moment_is_whole_after_a_rerun(tmp_path, seed):
    make_phantoms(tmp_path / "source", PhantomConfig(seed=1, train_patients=14, valid_patients=12), processes=1)
    data_root = tmp_path / "data"
    ingest(tmp_path / "source", data_root)
    assert count_volumes(data_root) >= 40
    program = "from pathlib import Path; from support.data_roots import convert; convert(Path(sys.argv[1]))"
    code = f"import sys\nif __name__ == '__main__':\n    {program}"
    with start_python(code, data_root, stderr=subprocess.DEVNULL, start_new_session=True) as child:
        wait_for(lambda: list((data_root / "shards").glob("*/.*.tmp")) or child.poll() is not None)
        kill_after(child, random.Random(seed).uniform(0, 5))
    convert(data_root)
    assert_every_volume_is_converted(data_root)


def test_recipes_and_encodings_live_side_by_side(data_root):
    convert(data_root)
    finer = dataclasses.replace(COARSE, name="finer", spacing_mm=(20.0, 20.0, 20.0))
    with (
        dask.config.set(WITHOUT_PROFILER),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
    ):
        assert convert(data_root, finer, "raw", cluster.scheduler_address)["done"] == count_volumes(data_root)
    assert convert(data_root)["done"] == 0
    with store.read(data_root) as connection:
        rows = connection.execute("select recipe_id, shard_path, row_index from current_shard_volumes").fetchall()
    assert len(rows) == 2 * count_volumes(data_root)
    for recipe_id, path, row in rows:
        with ShardReader(data_root / path, verify=True) as reader:
            assert reader.recipe_id == recipe_id
            assert reader.encoding == ("raw" if reader.recipe == finer else "delta-zstd")
            assert reader.read(row).shape == COARSE.shape


def test_progress_shows_gigabytes_a_second(data_root):
    notes = []

    class Recorder(LogReporter):
        def update(self, stage: str, done: int, note: str) -> None:
            notes.append((stage, done, note))

    token = REPORTER.set(Recorder())
    try:
        convert(data_root)
    finally:
        REPORTER.reset(token)
    assert notes[-1][:2] == ("convert", count_volumes(data_root))
    assert all(re.fullmatch(r"\d+\.\d\d GB/s", note) for _, _, note in notes)


def test_bad_files_are_rejected_and_the_rest_is_converted(source, data_root):
    paths = sorted(source.glob("dataset/*_fixed/*/*/*.nii.gz"))
    paths[0].write_bytes(paths[0].read_bytes()[:-2000])
    paths[1].write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    paths[2].write_bytes(gzip.compress(b"no header here"))
    paths[3].unlink()
    result = convert(data_root)
    assert result["rejected"] == 4
    assert result["done"] == len(paths) - 4
    with store.read(data_root) as connection:
        reasons = connection.execute("select reason, is_permanent from current_rejects order by all").fetchall()
    assert reasons == [("changed_since_ingest", False)] * 3 + [("missing_file", False)]
    ingest(source, data_root)
    assert convert(data_root)["rejected"] == 3  # the missing one is a row of data_quality now
    with store.read(data_root) as connection:
        reasons = {reason for (reason,) in connection.execute("select reason from current_rejects").fetchall()}
        missing = connection.execute("select item from data_quality where problem = 'file_missing'").fetchall()
        facts = "header_orientation, count_blank_slices, count_repeated_slices"
        assert connection.execute(f"select distinct {facts} from shard_volumes").fetchall() == [("LPS", 0, 0)]
    assert {"truncated", "not_nifti"} <= reasons
    assert missing == [(paths[3].name.removesuffix(".nii.gz"),)]
    again = convert(data_root)
    assert (again["done"], again["rejected"]) == (0, 0)
