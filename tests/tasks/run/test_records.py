"""Record files: whole or absent, and stamped with their run."""

import resource
import secrets
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest
from support.records import volume_row

from tasks.run.records import RecordWriter, new_run_id
from tasks.run.stage_run import open_run
from warehouse.store import query


@contextmanager
def limited_file_size(size_bytes: int):
    """Lets no file of this process grow beyond a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_run_ids_sort_by_time(tmp_path):
    ids = [new_run_id(tmp_path) for _ in range(5)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 5


@pytest.mark.parametrize("ahead", ["2096", "9999"])
def test_run_after_one_of_a_clock_that_was_ahead_is_the_later_one(tmp_path, ahead):
    wrong = RecordWriter(tmp_path, f"{ahead}1126T120000000000-abc123")
    for status in ("running", "completed"):
        wrong.write("runs", [{"run_id": wrong.run_id, "status": status, "stage": "ingest", "variant": ""}])
    wrong.write("volumes", [volume_row("valid_1_a_1", "old")])
    for fingerprint in ("new", "newer"):
        with open_run(tmp_path, "ingest") as run:
            run.record("volumes", [volume_row("valid_1_a_1", fingerprint)])
        assert query(tmp_path, "select fingerprint from current_volumes") == [(fingerprint,)]


def test_names_that_hold_no_time_do_not_stop_a_run(tmp_path):
    for name in ("r1-000000", "99999999T999999999999-abc123-000000", "20261126T120000000000"):
        (tmp_path / "records/runs").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"records/runs/{name}.parquet").touch()
    assert new_run_id(tmp_path)


def test_rows_are_stamped_and_numbered(tmp_path):
    writer = RecordWriter(tmp_path, "r1")
    assert writer.write("volumes", [{"volume_name": "a"}, {"volume_name": "b", "split": "valid"}]) == 2
    assert writer.write("volumes", []) == 0
    writer.write("labels", [{"scan_id": "a"}])
    files = sorted(str(path.relative_to(tmp_path / "records")) for path in tmp_path.rglob("*.parquet"))
    assert files == ["labels/r1-000001.parquet", "volumes/r1-000000.parquet"]
    rows = pq.read_table(tmp_path / "records/volumes/r1-000000.parquet").to_pylist()
    assert rows == [
        {"volume_name": "a", "split": None, "run_id": "r1"},
        {"volume_name": "b", "split": "valid", "run_id": "r1"},
    ]


def test_mapping_of_metadata_stays_a_mapping(tmp_path):
    RecordWriter(tmp_path, "r1").write("volumes", [{"metadata": {"Manufacturer": "X"}}, {"metadata": {"Rows": "512"}}])
    rows = pq.read_table(tmp_path / "records/volumes/r1-000000.parquet").to_pylist()
    assert [dict(row["metadata"]) for row in rows] == [{"Manufacturer": "X"}, {"Rows": "512"}]


def test_failed_write_is_not_counted(tmp_path):
    writer = RecordWriter(tmp_path, "r1")
    (tmp_path / "records").mkdir()
    (tmp_path / "records/volumes").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="volumes"):
        writer.write("volumes", [{"volume_name": "a"}])
    assert writer.count_files == 0


def test_failed_write_leaves_nothing(tmp_path):
    rows = [{"volume_name": secrets.token_hex(50)} for _ in range(1000)]
    writer = RecordWriter(tmp_path, "r1")
    writer.write("volumes", rows[:1])
    with limited_file_size(4096), pytest.raises(OSError, match="File too large"):
        writer.write("volumes", rows)
    assert [path.name for path in (tmp_path / "records/volumes").iterdir()] == ["r1-000000.parquet"]
    writer.write("volumes", rows)  # the number of the failed file is used again
    assert sorted(path.name for path in (tmp_path / "records/volumes").iterdir())[1:] == ["r1-000001.parquet"]
