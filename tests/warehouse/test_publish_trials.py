"""A publish outlives kills, rivals, readers, a full disk, and people who open the file to write."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from support.records import write_run

from ctclip_model.errors import WarehouseError
from warehouse import schema, store
from warehouse.kept_open import KEPT
from warehouse.store import query

PUBLISH = "import sys, pathlib; from warehouse.store import publish; publish(pathlib.Path(sys.argv[1]))"
# opens, asks and closes until the file `stop` appears; prints how often
READ = """
import sys, pathlib
from warehouse.store import read
root, count, seen = pathlib.Path(sys.argv[1]), 0, 0
while not (root / "stop").exists():
    with read(root) as connection:
        (now,) = connection.execute("select count(*) from current_volumes").fetchone()
    assert now >= seen, "an older warehouse came back"
    count, seen = count + 1, now
print(count)
"""
# holds one connection and asks it again and again until the file `stop` appears, and then for what it has not read yet
HOLD = """
import sys, pathlib, time, duckdb
root, seen, started = pathlib.Path(sys.argv[1]), set(), time.monotonic()
with duckdb.connect(str(root / "warehouse.duckdb"), read_only=True) as connection:
    (root / "open").touch()
    while not (root / "stop").exists():
        seen |= set(connection.execute("select count(*), bit_xor(hash(volumes)) from volumes").fetchall())
        time.sleep(0.1)
    files = connection.execute("select count(*), count(distinct path) from record_files").fetchone()
print(time.monotonic() - started, len(seen), *files)
"""
HELD_S = 20.0


def start(program: str, *arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def write_volumes(data_root: Path, run: int, count: int = 1) -> None:
    names = [f"train_{run * count + n + 1}_a_1" for n in range(count)]
    write_run(data_root, run, volumes=[{"volume_name": name, "fingerprint": "f"} for name in names])


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_at_any_moment_of_a_publish_leaves_the_old_or_the_new_warehouse(tmp_path, kills):
    moments, count, run, interrupted = random.Random(0), 30_000, 0, 0
    write_volumes(tmp_path, run, count)
    store.publish(tmp_path)
    for _ in range(kills):
        if query(tmp_path, "select count(*) from volumes") == [((run + 1) * count,)] and run < 9:
            run += 1
            write_volumes(tmp_path, run, count)
        before = query(tmp_path, "select count(*) from volumes")[0][0]
        process = start(PUBLISH, tmp_path)
        while process.poll() is None and not list(tmp_path.glob(f"{store.WORK_PREFIX}*")):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        interrupted += process.returncode == -signal.SIGKILL
        with store.read(tmp_path) as connection:
            (after,) = connection.execute("select count(*) from volumes").fetchone()
            schema.check_all(connection)
        assert after in (before, (run + 1) * count)
    assert interrupted
    store.publish(tmp_path)
    assert query(tmp_path, "select count(*) from volumes") == [((run + 1) * count,)]
    assert [path.name for path in tmp_path.glob("warehouse*")] == [store.WAREHOUSE_FILE]


def test_two_writers_wait_in_turn_and_lose_nothing(tmp_path):
    for run in range(2):
        write_volumes(tmp_path, run, 5000)
    writers = [start(PUBLISH, tmp_path) for _ in range(2)]
    for writer in writers:
        _, error = writer.communicate(timeout=60)
        assert writer.returncode == 0, error
    assert query(tmp_path, "select count(*) from current_volumes") == [(10_000,)]


def test_eight_readers_meet_no_error_while_publishes_go_on(tmp_path):
    write_volumes(tmp_path, 0)
    store.publish(tmp_path)
    readers = [start(READ, tmp_path) for _ in range(8)]
    for run in range(1, 6):
        write_volumes(tmp_path, run)
        store.publish(tmp_path)
    (tmp_path / "stop").touch()
    for reader in readers:
        output, error = reader.communicate(timeout=60)
        assert reader.returncode == 0, error
        assert output.strip().isdigit()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("SKIPPED LOUDLY: this machine does not allow a file system of our own")
    yield folder
    KEPT.close()
    subprocess.run(["umount", folder], check=True)


def test_full_disk_leaves_the_old_warehouse(small_disk):
    write_volumes(small_disk, 0)
    store.publish(small_disk)
    write_volumes(small_disk, 1)
    filler = small_disk / "filler"
    with pytest.raises(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    with pytest.raises(WarehouseError, match="the old one stays"):
        store.publish(small_disk)
    assert query(small_disk, "select count(*) from volumes") == [(1,)]
    filler.unlink()
    store.publish(small_disk)
    assert query(small_disk, "select count(*) from volumes") == [(2,)]


def test_file_that_may_not_grow_leaves_the_old_warehouse(tmp_path):
    write_volumes(tmp_path, 0)
    store.publish(tmp_path)
    write_volumes(tmp_path, 1, 20_000)
    limit = (tmp_path / store.WAREHOUSE_FILE).stat().st_size
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); {PUBLISH}"
    _, error = start(program, tmp_path).communicate(timeout=60)
    assert "the old one stays" in error
    assert query(tmp_path, "select count(*) from volumes") == [(1,)]


def test_user_cannot_open_the_published_file_to_write():
    nobody = "os.geteuid() or os.setuid(65534)"  # root is refused nothing
    program = f"import os, sys, duckdb; {nobody}; duckdb.connect(sys.argv[1])"
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder)
        data_root.chmod(0o777)  # a folder that all may write to: the file alone must refuse
        write_volumes(data_root, 0)
        store.publish(data_root)
        writer = start(program, data_root / store.WAREHOUSE_FILE)
        _, error = writer.communicate(timeout=60)
        assert writer.returncode != 0
        assert "permission denied" in error.lower()
        assert not list(data_root.glob("*.wal"))


def test_log_of_a_careless_root_is_set_aside_and_its_rows_are_not_ours(tmp_path):
    write_volumes(tmp_path, 0)
    store.publish(tmp_path)
    path = tmp_path / store.WAREHOUSE_FILE
    path.chmod(0o644)
    careless = (
        'import sys, os, duckdb; c = duckdb.connect(sys.argv[1]); c.execute("insert into volumes (volume_name) '
        "values ('mine')\"); os._exit(0)"
    )
    start(careless, path).communicate(timeout=60)
    assert path.with_name(f"{path.name}.wal").exists()
    write_volumes(tmp_path, 1)
    store.publish(tmp_path)
    assert query(tmp_path, "select volume_name from volumes order by 1") == [("train_1_a_1",), ("train_2_a_1",)]
    assert len(list(tmp_path.glob("*.wal.stray-*"))) == 1


def test_reader_that_holds_its_connection_delays_no_publish(tmp_path):
    write_volumes(tmp_path, 0)
    store.publish(tmp_path)
    with duckdb.connect(str(tmp_path / store.WAREHOUSE_FILE), read_only=True) as held:
        for run in (1, 2):
            write_volumes(tmp_path, run)
            assert store.publish(tmp_path, lock_timeout_s=1).is_changed
        assert held.execute("select count(*) from volumes").fetchall() == [(1,)]
    assert query(tmp_path, "select count(*) from volumes") == [(3,)]


@pytest.mark.slow
def test_reader_that_holds_its_connection_sees_its_file_to_the_end_while_publishes_go_on(tmp_path):
    write_volumes(tmp_path, 0, 20_000)
    store.publish(tmp_path)
    reader = start(HOLD, tmp_path)
    while not (tmp_path / "open").exists():
        assert reader.poll() is None
        time.sleep(0.01)
    started, run, held = time.monotonic(), 0, (tmp_path / store.WAREHOUSE_FILE).stat().st_ino
    while (elapsed := time.monotonic() - started) < HELD_S or run < 9:
        if run < 9 and elapsed > run * HELD_S / 9:
            run += 1
            write_volumes(tmp_path, run, 20_000)
            assert store.publish(tmp_path, lock_timeout_s=1).is_changed
            assert (tmp_path / store.WAREHOUSE_FILE).stat().st_ino != held, "edited under its reader"
        assert query(tmp_path, "select count(*) from volumes") == [((run + 1) * 20_000,)]
        time.sleep(0.1)
    (tmp_path / "stop").touch()
    output, error = reader.communicate(timeout=60)
    assert reader.returncode == 0, error
    held_s, *counts = output.split()
    assert float(held_s) >= HELD_S
    assert counts == ["1", "3", "3"]  # one answer throughout, and the record files of the first publish
    assert [path.name for path in tmp_path.glob("warehouse*")] == [store.WAREHOUSE_FILE]
