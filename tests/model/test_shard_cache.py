"""Copies of shards on the node: whole, checked, bounded, shared by processes, and never a reason to fail."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.processes import start_python, wait_for
from support.volumes import RECIPE, make_shard_volume

from ctclip_model.data import shard_cache
from ctclip_model.data.loader import BatchReader, SampleRef, VolumeDataset, iterate_batches
from ctclip_model.data.shard_cache import BOUND_VARIABLE, FOLDER_VARIABLE, ShardCache
from ctclip_model.data.shard_store import ShardStore
from ctclip_model.data.shards import write_shard
from ctclip_model.errors import ConfigurationError, ShardError

SHARDS = [f"shards/{number}.arrow" for number in range(4)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four shards of two volumes each. All voxels of a volume are its number."""
    for number, path in enumerate(SHARDS):
        indices = (2 * number, 2 * number + 1)
        volumes = [
            make_shard_volume(f"train_{index}_a_1", voxels=np.full(RECIPE.shape, index, np.int16)) for index in indices
        ]
        write_shard(tmp_path / "root" / path, RECIPE, volumes, encoding="raw")
    return tmp_path / "root"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


SAMPLES = [SampleRef(f"train_{index}_a_1", SHARDS[index // 2], index % 2) for index in (6, 1, 4, 3, 2, 0, 7, 5)]
EXPECTED = [6, 1, 4, 3, 2, 0, 7, 5]


def size_of(root: Path) -> int:
    return (root / SHARDS[0]).stat().st_size


def make_cache(root: Path, folder: Path, shards: float = 10, *, in_order: bool = False) -> ShardCache:
    """A cache with room for some shards."""
    folder.mkdir(exist_ok=True)
    return ShardCache(ShardStore(root), SHARDS, folder, int(shards * size_of(root)), in_order=in_order)


def read_all(dataset: VolumeDataset) -> list[int]:
    return [int(dataset[index][0, 0, 0]) for index in range(len(dataset))]


def list_copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.arrow*"))


def test_volumes_come_from_copies_once_these_are_whole(root, folder):
    dataset = VolumeDataset(SAMPLES, root)
    assert read_all(dataset) == EXPECTED
    assert dataset._cache.fill() == {*SHARDS}
    for path in SHARDS:
        (root / path).write_bytes(b"gone" * (size_of(root) // 4 + 1))
    assert read_all(dataset) == EXPECTED
    assert dataset.read_batch([0, 3], threads=2)[:, 0, 0, 0].tolist() == [6, 3]
    assert BatchReader(dataset, processes=2)([5, 6])[:, 0, 0, 0].tolist() == [0, 7]


def test_a_later_data_set_uses_the_copies_and_another_data_root_has_its_own(root, folder, tmp_path):
    make_cache(root, folder).fill()
    before = {path: path.stat().st_ino for path in folder.rglob("*.arrow")}
    make_cache(root, folder).fill()
    assert {path: path.stat().st_ino for path in folder.rglob("*.arrow")} == before
    other = tmp_path / "other"
    (other / "shards").mkdir(parents=True)
    for path in SHARDS:
        os.link(root / path, other / path)
    make_cache(other, folder).fill()
    assert len(list_copies(folder)) == 8


@pytest.mark.parametrize("damage", ["cut", "voxels", "gone"])
def test_damaged_copy_is_read_in_place(root, folder, damage, caplog):
    dataset = VolumeDataset(SAMPLES, root, verify=True)
    dataset._cache.fill()
    (copy,) = folder.rglob("0.arrow")
    content = bytearray(copy.read_bytes())
    copy.unlink()
    if damage != "gone":
        if damage == "voxels":
            content[len(content) // 4] ^= 255
        copy.write_bytes(content if damage == "voxels" else content[: len(content) // 2])
    assert read_all(dataset) == EXPECTED
    assert ("is read in place" in caplog.text) == (damage != "gone")
    assert len(list_copies(folder)) == 3
    again = VolumeDataset(SAMPLES, root)
    assert again._cache.fill() == {*SHARDS}  # copied again


def test_a_copy_of_another_size_is_replaced(root, folder):
    dataset = VolumeDataset(SAMPLES, root)
    dataset._cache.fill()
    (copy,) = folder.rglob("0.arrow")
    copy.write_bytes(copy.read_bytes()[:-100])
    again = VolumeDataset(SAMPLES, root)
    again._cache.fill()
    assert copy.stat().st_size == size_of(root)
    assert read_all(again) == EXPECTED


def test_a_damaged_shard_is_not_copied_and_fails_as_without_a_cache(root, folder):
    path = root / SHARDS[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 255
    path.write_bytes(content)
    dataset = VolumeDataset(SAMPLES, root, verify=True)
    assert dataset._cache.fill() == {*SHARDS} - {SHARDS[1]}
    with pytest.raises(ShardError, match="checksum"):
        read_all(dataset)


def test_full_cache_keeps_the_shards_of_the_data_set_and_reads_the_rest_in_place(root, folder):
    cache = make_cache(root, folder, 2.5)
    kept = cache.fill()
    assert len(kept) == 2
    for _ in range(3):  # random order: no shard is copied for another
        for path in SHARDS:
            is_copy = str(cache.locate(path)).startswith(str(folder))
            assert is_copy == (path in kept)
    assert make_cache(root, folder, 2.5).fill() == kept


def test_shards_that_nobody_has_used_for_an_hour_make_room_the_oldest_first(root, folder, tmp_path):
    old = ShardCache(ShardStore(root), SHARDS[:3], folder, 10 * size_of(root))
    folder.mkdir()
    old.fill()
    now = time.time()
    ages = {"0.arrow": 2, "1.arrow": 3, "2.arrow": 0}  # hours
    for path in folder.rglob("*.arrow"):
        os.utime(path, (now, now - ages[path.name] * 3600))
    fresh = ShardCache(ShardStore(root), SHARDS[3:], folder, 3 * size_of(root))
    assert fresh.fill() == {SHARDS[3]}
    assert list_copies(folder) == ["0.arrow", "2.arrow", "3.arrow"]


def test_in_order_a_reader_waits_for_the_copy_and_what_it_has_passed_makes_room(root, folder, monkeypatch):
    monkeypatch.setenv(BOUND_VARIABLE, str(3.5 * size_of(root) / 1e9))
    located: list[str] = []
    locate = ShardCache.locate

    def note(cache: ShardCache, path: str) -> Path | str:
        located.append(str(found := locate(cache, path)))
        return found

    monkeypatch.setattr(ShardCache, "locate", note)
    samples = sorted(SAMPLES, key=lambda sample: (sample.shard_path, sample.row_index))
    names = [names for names, _ in iterate_batches(samples, root, batch_size=1)]
    assert [name for (name,) in names] == [sample.name for sample in samples]
    assert all(path.startswith(str(folder)) for path in located)
    assert len(list_copies(folder)) <= 3


def test_full_disk_and_unusable_folder_are_one_warning(root, folder, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    dataset = VolumeDataset(SAMPLES, root)
    assert dataset._cache.fill() == set()
    assert read_all(dataset) == EXPECTED
    assert caplog.text.count("No space left") == 1
    assert list_copies(folder) == []
    caplog.clear()
    monkeypatch.setenv(FOLDER_VARIABLE, str(root / SHARDS[0]))
    assert read_all(VolumeDataset(SAMPLES, root)) == EXPECTED
    assert caplog.text.count("no shard is cached") == 1


@pytest.mark.parametrize("bound", ["many", "0", "-1", "nan", "inf"])
def test_bound_that_is_no_size_is_refused(root, folder, monkeypatch, bound):
    monkeypatch.setenv(BOUND_VARIABLE, bound)
    with pytest.raises(ConfigurationError, match=f"{BOUND_VARIABLE} is '{bound}', not a number of gigabytes"):
        VolumeDataset(SAMPLES, root)


FILL = """
import sys, time
from pathlib import Path
from ctclip_model.data import shard_cache
from ctclip_model.data.shard_store import ShardStore
root, folder, shards, slow = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), float(sys.argv[4])
check = shard_cache._check
shard_cache._check = lambda path: (print("copied", path.name, flush=True), time.sleep(slow), check(path))
print(sorted(shard_cache.ShardCache(ShardStore(root), shards, folder, 10**9).fill()), flush=True)
"""


def test_two_processes_copy_each_shard_once(root, folder):
    folder.mkdir()
    arguments = (root, folder, ",".join(SHARDS), "0.2")
    with start_python(FILL, *arguments) as one, start_python(FILL, *arguments) as other:
        outputs = [process.communicate(timeout=600)[0] for process in (one, other)]
    assert [output.count(str(SHARDS)) for output in outputs] == [1, 1]
    assert sum(output.count("copied") for output in outputs) == 4
    assert list_copies(folder) == ["0.arrow", "1.arrow", "2.arrow", "3.arrow"]


def test_a_kill_while_copying_leaves_nothing_that_is_taken_for_a_shard(root, folder):
    folder.mkdir()
    with start_python(FILL, root, folder, ",".join(SHARDS), "600") as process:
        wait_for(lambda: list_copies(folder) == ["0.arrow.part"])
        process.send_signal(signal.SIGKILL)
    dataset = VolumeDataset(SAMPLES, root)
    assert read_all(dataset) == EXPECTED
    assert dataset._cache.fill() == {*SHARDS}
    assert list_copies(folder) == ["0.arrow", "1.arrow", "2.arrow", "3.arrow"]


def test_copying_ends_with_the_data_set(root, folder, monkeypatch):
    began, goes_on = threading.Event(), threading.Event()
    check = shard_cache._check

    def wait(path: Path) -> None:
        began.set()
        goes_on.wait(60)
        check(path)

    monkeypatch.setattr(shard_cache, "_check", wait)
    dataset = VolumeDataset(SAMPLES, root)
    assert int(dataset[0][0, 0, 0]) == 6
    began.wait(60)
    thread = dataset._cache._thread
    del dataset
    goes_on.set()
    thread.join(60)
    assert len(list_copies(folder)) <= 1
