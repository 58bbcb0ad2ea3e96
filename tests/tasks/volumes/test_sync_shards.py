"""Shards in a bucket: copied once, read by ranges or through the cache, and never lost while the bucket has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor
from support.command_line import run_ctclip
from support.records import write_run
from support.volumes import RECIPE, make_shard_volume

from ctclip_model.data.loader import BatchReader, SampleRef, VolumeDataset
from ctclip_model.data.shard_cache import FOLDER_VARIABLE
from ctclip_model.data.shard_store import BUCKET_VARIABLE
from ctclip_model.data.shards import write_shard
from ctclip_model.errors import ConfigurationError, MissingInputError, RemoteUnavailableError, ShardError
from tasks.run.lost import find_lost_shards, require_shards
from tasks.volumes.sync_shards import describe, sync_shards
from warehouse import store

for package in ("moto.server", "s3fs", "boto3"):
    pytest.importorskip(package, reason=f"SKIPPED LOUDLY: no {package}, install the extra `dev`")

from support.bucket import SECRET, LoopbackBucket, set_environment  # noqa: E402

ADDRESS = "s3://mirror/lab data/1"
SHARDS = [f"shards/r/{number}.arrow" for number in range(3)]
SAMPLES = [SampleRef(f"train_{index}_a_1", SHARDS[index // 2], index % 2) for index in (5, 0, 3, 2, 4, 1)]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackBucket]:
    with LoopbackBucket("mirror").running() as running:
        set_environment(monkeypatch, running, tmp_path)
        yield running


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Three shards of two volumes each. All voxels of a volume are its number."""
    root, rows = tmp_path / "data", []
    for number, path in enumerate(SHARDS):
        volumes = [
            make_shard_volume(f"train_{index}_a_1", voxels=np.full(RECIPE.shape, index, np.int16))
            for index in (2 * number, 2 * number + 1)
        ]
        rows += [
            {"volume_name": row.name, "recipe_id": "r", "shard_path": path, "row_index": row.row_index}
            for row in write_shard(root / path, RECIPE, volumes)
        ]
    write_run(root, 0, shard_volumes=rows)
    store.publish(root)
    return root


@pytest.fixture
def worker(bucket: LoopbackBucket, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data root of a machine that has no shard of its own."""
    sync_shards(data_root, ADDRESS)
    bucket.requests.clear()
    monkeypatch.setenv(BUCKET_VARIABLE, f"{ADDRESS}/")
    return tmp_path / "worker"


def read_all(dataset: VolumeDataset) -> list[int]:
    return [int(dataset[index][0, 0, 0]) for index in range(len(dataset))]


def test_missing_shards_are_copied_once_and_a_rerun_goes_on(bucket, data_root):
    bucket.faults.play(403, on="PUT")
    with pytest.raises(RemoteUnavailableError, match="it goes on from here") as caught:
        sync_shards(data_root, ADDRESS)
    assert SECRET not in str(caught.value)
    first = sync_shards(data_root, ADDRESS)
    assert (first.count_shards, first.count_lost) == (3, 0)
    assert f"CTCLIP_SHARDS={ADDRESS}" in describe(first)
    bucket.requests.clear()
    again = sync_shards(data_root, f"{ADDRESS}/")
    assert (again.count_copied, again.bytes_copied, bucket.count("PUT ")) == (0, 0, 0)
    bucket.client.put_object(Bucket="mirror", Key="lab data/1/shards/r/1.arrow", Body=b"cut")
    assert sync_shards(data_root, ADDRESS).count_copied == 1
    stored = bucket.client.get_object(Bucket="mirror", Key="lab data/1/shards/r/1.arrow")["Body"].read()
    assert stored == (data_root / SHARDS[1]).read_bytes()


def test_worker_reads_volumes_by_ranges_and_needs_no_shard_of_its_own(bucket, worker, data_root):
    require_shards(worker, SHARDS)
    dataset = VolumeDataset(SAMPLES, worker)
    assert int(dataset[1][0, 0, 0]) == 0
    assert bucket.count("GET /mirror/lab data/1/shards/r/0.arrow") >= 1
    assert bucket.count("shards/r/2.arrow") == 0
    assert read_all(dataset) == [5, 0, 3, 2, 4, 1]
    get_reusable_executor().shutdown(wait=True)  # processes of a former test know other credentials
    assert BatchReader(dataset, processes=2)([0, 4])[:, 0, 0, 0].tolist() == [5, 4]
    assert find_lost_shards(worker, [*SHARDS, "shards/r/9.arrow"]) == {"shards/r/9.arrow"}


def test_worker_copies_shards_from_the_bucket_to_its_cache(bucket, worker, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    dataset = VolumeDataset(SAMPLES, worker)
    assert dataset._cache.fill() == {*SHARDS}
    bucket.requests.clear()
    assert read_all(dataset) == [5, 0, 3, 2, 4, 1]
    assert bucket.requests == []


def test_shard_of_the_data_root_goes_before_the_bucket(bucket, worker, data_root):
    assert read_all(VolumeDataset(SAMPLES, data_root)) == [5, 0, 3, 2, 4, 1]
    assert bucket.requests == []


@pytest.mark.parametrize("fault", [403, 404])
def test_fault_of_the_bucket_is_one_line_without_its_librarys_text(bucket, worker, fault):
    bucket.faults.play(fault, on="0.arrow", times=20)
    with pytest.raises(ShardError, match=r"0\.arrow: cannot be read: .*the bucket's library failed") as caught:
        read_all(VolumeDataset(SAMPLES, worker))
    assert SECRET not in str(caught.value)


def test_what_cannot_be_copied_is_said(data_root, tmp_path):
    for address in ("bucket/prefix", "hf://owner/name"):
        with pytest.raises(ConfigurationError, match="no address of a bucket"):
            sync_shards(data_root, address)
    (data_root / SHARDS[0]).unlink()
    synced = sync_shards(data_root, f"file://{tmp_path}/copies")
    assert (synced.count_copied, synced.count_lost) == (2, 1)
    assert "1 lost" in describe(synced)
    write_run(tmp_path / "empty", 0)
    store.publish(tmp_path / "empty")
    with pytest.raises(MissingInputError, match="has no shard"):
        sync_shards(tmp_path / "empty", ADDRESS)


def test_command_says_how_workers_read_the_bucket(bucket, data_root):
    done = run_ctclip("sync-shards", "--to", ADDRESS, "--data-root", data_root)
    assert done.returncode == 0, done.stderr
    assert "3 shards: 3 copied" in done.stdout
    assert f"CTCLIP_SHARDS={ADDRESS}" in done.stdout
