"""The loader: volumes by sample, from threads and processes, and the order in which training sees them."""

from __future__ import annotations

import gc
import os
import pickle
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor, process_executor
from support.volumes import RECIPE, make_shard_volume
from torch.utils.data import DataLoader

from ctclip_model.config import Recipe
from ctclip_model.data import loader, reading_processes, shards
from ctclip_model.data.loader import (
    BatchReader,
    SampleRef,
    ScanSampler,
    VolumeDataset,
    iterate_batches,
    to_model_input,
)
from ctclip_model.data.shards import write_shard
from ctclip_model.errors import ShardError


def voxels(index: int) -> np.ndarray:
    return np.full(RECIPE.shape, index, np.int16)


@pytest.fixture
def samples(tmp_path) -> list[SampleRef]:
    """Twelve volumes in three shards, listed in no order."""
    found = []
    for shard in range(3):
        path = f"shards/{shard}.arrow"
        names = {f"train_{index + 1}_a_1": index for index in range(4 * shard, 4 * shard + 4)}
        volumes = (make_shard_volume(name, voxels=voxels(index)) for name, index in names.items())
        found += [SampleRef(row.name, path, row.row_index) for row in write_shard(tmp_path / path, RECIPE, volumes)]
    return [found[index] for index in (7, 0, 11, 3, 4, 8, 1, 2, 10, 9, 6, 5)]


def expected(samples: list[SampleRef]) -> list[int]:
    return [int(sample.name.split("_")[1]) - 1 for sample in samples]


def test_a_sample_is_its_volume(tmp_path, samples):
    dataset = VolumeDataset(samples, tmp_path, verify=True)
    assert len(dataset) == 12
    assert dataset[0].dtype == torch.int16
    assert dataset.shape == RECIPE.shape
    assert [int(dataset[index][1, 2, 3]) for index in range(12)] == expected(samples)
    assert dataset.read_batch([2, 0, 2])[:, 0, 0, 0].tolist() == [11, 7, 11]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_read_the_same(tmp_path, samples, start):
    dataset = VolumeDataset(samples, tmp_path)
    assert dataset[0] is not None  # an open map must not trouble the workers
    batches = DataLoader(dataset, batch_size=5, num_workers=1, multiprocessing_context=start)
    assert torch.cat([batch[:, 0, 0, 0] for batch in batches]).tolist() == expected(samples)


def test_a_pickled_data_set_reads_on(tmp_path, samples):
    dataset = VolumeDataset(samples, tmp_path)
    assert torch.equal(dataset[3], pickle.loads(pickle.dumps(dataset))[3])


def test_few_shards_stay_open(tmp_path, samples, monkeypatch):
    monkeypatch.setattr(loader, "OPEN_SHARDS", 1)
    dataset = VolumeDataset(samples, tmp_path)
    assert [int(dataset[index][0, 0, 0]) for index in range(12)] == expected(samples)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert len([path for path in mapped if path.startswith(str(tmp_path))]) == 1


def test_a_sample_that_is_another_volume_is_refused(tmp_path, samples):
    wrong = SampleRef("train_99_a_1", samples[0].shard_path, samples[0].row_index)
    with pytest.raises(ShardError, match="train_8_a_1, not train_99_a_1"):
        VolumeDataset([wrong], tmp_path)[0]


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_batches_come_whole_and_in_order(tmp_path, samples, batch_size):
    batches = list(iterate_batches(samples, tmp_path, batch_size=batch_size, threads=2))
    assert [name for names, _ in batches for name in names] == [sample.name for sample in samples]
    assert all(volumes.shape[1:] == (1, *RECIPE.shape) and len(volumes) <= batch_size for _, volumes in batches)
    assert torch.cat([volumes[:, 0, 0, 0, 0] for _, volumes in batches]).tolist() == expected(samples)
    assert list(iterate_batches([], tmp_path, batch_size=batch_size)) == []


def test_the_models_input_is_hu_by_a_thousand():
    volumes = torch.tensor([-1000, -1, 0, 333, 1000], dtype=torch.int16).expand(2, 3, 4, 5)
    inputs = to_model_input(volumes, "cpu")
    assert inputs.shape == (2, 1, 3, 4, 5)
    assert inputs[0, 0, 0, 0].tolist() == pytest.approx([-1, -0.001, 0, 0.333, 1])
    assert to_model_input(volumes, "cpu", torch.bfloat16).dtype == torch.bfloat16


SCANS = [f"s{index % 10}" for index in range(25)]  # ten scans of two or three reconstructions


def test_an_epoch_shows_every_scan_once():
    sampler = ScanSampler(SCANS, seed=1)
    order = list(sampler)
    assert len(order) == len(sampler) == 10
    assert {SCANS[index] for index in order} == set(SCANS)


def test_the_order_follows_from_seed_and_epoch_alone():
    first, again, other = ScanSampler(SCANS, seed=1), ScanSampler(SCANS, seed=1), ScanSampler(SCANS, seed=2)
    assert list(first) == list(first) == list(again) != list(other)
    first.set_epoch(1)
    assert list(first) != list(again)
    assert [SCANS[index] for index in first] != [SCANS[index] for index in again]


def test_every_reconstruction_gets_its_turn():
    sampler = ScanSampler(SCANS, seed=0)
    seen = Counter[int]()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        seen.update(sampler)
    assert set(seen) == set(range(25))
    assert min(seen.values()) > 5


def test_processes_share_an_epoch_evenly():
    shares = [list(ScanSampler(SCANS, seed=1, rank=rank, world_size=3)) for rank in range(3)]
    assert {len(share) for share in shares} == {4}
    assert {SCANS[index] for share in shares for index in share} == set(SCANS)


def test_threads_read_the_same_batch_and_raise_what_is_wrong(tmp_path, samples):
    dataset = VolumeDataset(samples, tmp_path)
    order = [5, 0, 11, 3, 3]
    assert torch.equal(dataset.read_batch(order, threads=3), dataset.read_batch(order))
    samples[3] = SampleRef("train_99_a_1", samples[3].shard_path, samples[3].row_index)
    with pytest.raises(ShardError, match="train_99_a_1"):
        dataset.read_batch(order, threads=3)


def test_threads_share_a_volume_out_by_its_slabs(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SLAB_VOXELS", 20)  # a plane a slab
    planes = Recipe("planes", shape=(3, 4, 5))
    volume = make_shard_volume("train_1_a_1", planes)
    (row,) = write_shard(tmp_path / "0.arrow", planes, [volume])
    assert [shards.ShardReader(tmp_path / "0.arrow").split(count) for count in (1, 2, 9)] == [
        [(0, 3)], [(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)],
    ]  # fmt: skip
    dataset = VolumeDataset([SampleRef(row.name, "0.arrow", row.row_index)], tmp_path)
    for threads in (1, 2, 4):
        assert np.array_equal(dataset.read_batch([0, 0], threads=threads), np.stack([volume.converted.voxels] * 2))


def test_a_reader_overwrites_a_batch_only_with_the_second_after_it(tmp_path, samples):
    read = BatchReader(VolumeDataset(samples, tmp_path), threads=2)
    found = [read([0, 1, 2]), read([3, 4, 5])]
    assert [batch[:, 0, 0, 0].tolist() for batch in found] == [expected(samples)[:3], expected(samples)[3:6]]
    third = read([6, 7])
    assert third.data_ptr() == found[0].data_ptr()
    assert third[:, 0, 0, 0].tolist() == expected(samples)[6:8]
    assert found[1][:, 0, 0, 0].tolist() == expected(samples)[3:6]
    assert read(range(12))[:, 0, 0, 0].tolist() == expected(samples)


def count_open_memory() -> int:
    """Open files of `share_memory` in this process."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found += "ctclip-batch" in str(link.readlink())
    return found


def test_memory_of_processes_is_given_back(tmp_path, samples):
    read = BatchReader(VolumeDataset(samples, tmp_path), processes=2)
    first = read([0, 1]).clone()
    assert count_open_memory() > 0
    del read
    gc.collect()
    assert count_open_memory() == 0
    assert torch.equal(first, VolumeDataset(samples, tmp_path).read_batch([0, 1]))


def test_processes_stay_and_keep_their_map(tmp_path, samples):
    """On a GPU machine each was replaced after 300 MB, and mapped its memory anew for each volume."""
    read = BatchReader(VolumeDataset(samples, tmp_path), processes=1)
    read(range(12)), read(range(12))  # the two batches in turn
    process, uses_psutil, before = look_at_process()
    assert not uses_psutil
    read(range(12)), read(range(12))
    again, _, after = look_at_process()
    assert (again, after.misses, after.hits) == (process, before.misses, before.hits + 24)


def look_at_process() -> tuple[int, bool, Any]:
    pool = get_reusable_executor(1, timeout=reading_processes.IDLE_S, initializer=reading_processes._allow_growth)
    found: tuple[int, bool, Any] = pool.submit(describe_process).result()
    return found


def describe_process() -> tuple[int, bool, Any]:
    return os.getpid(), process_executor._USE_PSUTIL, reading_processes._map.cache_info()


def test_processes_read_the_same_as_threads(tmp_path, samples):
    dataset = VolumeDataset(samples, tmp_path)
    read = BatchReader(dataset, processes=2)
    for rows in ([5, 0, 5], [1, 2], [4], range(12)):
        assert torch.equal(read(rows), dataset.read_batch(rows))
    samples[3] = SampleRef("train_99_a_1", samples[3].shard_path, samples[3].row_index)
    with pytest.raises(ShardError, match="train_99_a_1"):
        read([2, 3])
