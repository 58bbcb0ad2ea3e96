"""Record files: whole or absent, and stamped with their run."""

import pyarrow.parquet as pq
import pytest

from tasks.run.records import RecordWriter, new_run_id


def test_run_ids_sort_by_time():
    ids = [new_run_id() for _ in range(5)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 5


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


def test_failed_write_leaves_nothing(tmp_path):
    writer = RecordWriter(tmp_path, "r1")
    (tmp_path / "records").mkdir()
    (tmp_path / "records/volumes").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="volumes"):
        writer.write("volumes", [{"volume_name": "a"}])
    assert writer.count_files == 0
