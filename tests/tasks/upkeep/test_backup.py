"""Backups: complete while stages run, and restored to the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import run_ctclip
from support.records import volume_row, write_run

from tasks.upkeep import backup as module
from tasks.upkeep.backup import back_up, restore
from warehouse.store import query
from warehouse.tables import TABLES


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Two runs, a model, and files that are not finished."""
    folder = tmp_path / "data"
    write_run(folder, 0, "ingest", volumes=[volume_row("valid_1_a_1"), volume_row("valid_2_a_1")])
    write_run(folder, 1, "train", models=[{"model_id": "m", "path": "models/m"}])
    for name in ("models/m/model.safetensors", "models/.m.123.tmp/model.safetensors", "models/n.work/state",
                 "records/volumes/.half.parquet.tmp", "shards/r/a.arrow"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_restored_backup_has_the_same_rows_and_models(data_root, tmp_path):
    copied = run_ctclip("backup", tmp_path / "backup", "--data-root", data_root)
    assert copied.returncode == 0, copied.stderr
    restored = run_ctclip("restore", tmp_path / "backup", "--data-root", tmp_path / "new")
    assert restored.returncode == 0, restored.stderr
    module.publish(data_root)
    for table in TABLES:
        assert query(tmp_path / "new", f"from {table.name}") == query(data_root, f"from {table.name}")
    files = sorted(str(path.relative_to(tmp_path / "backup")) for path in (tmp_path / "backup/models").rglob("*.*"))
    assert files == ["models/m/model.safetensors"]


def test_second_backup_copies_what_is_new(data_root, tmp_path):
    back_up(data_root, tmp_path / "backup")
    assert back_up(data_root, tmp_path / "backup") == 0
    write_run(data_root, 2, "ingest", volumes=[volume_row("valid_3_a_1")])
    (data_root / "models/m/model.safetensors").write_text("trained again!!!")
    assert back_up(data_root, tmp_path / "backup") == 4  # the run's start, its rows and its end, and the weights
    restore(tmp_path / "backup", tmp_path / "new")
    assert query(tmp_path / "new", "select count(*) from current_volumes") == [(3,)]


@pytest.mark.parametrize("moment", range(6))
def test_run_that_begins_while_a_backup_is_taken_is_in_it_completely_or_not_at_all(
    data_root, tmp_path, monkeypatch, moment
):
    copy, copied = module._copy_missing, []

    def begin_meanwhile(path: Path, target: Path) -> bool:
        if len(copied) == moment:
            write_run(data_root, 2, "train", volumes=[volume_row("valid_3_a_1")], models=[{"model_id": "k"}])
        copied.append(path)
        return copy(path, target)

    monkeypatch.setattr(module, "_copy_missing", begin_meanwhile)
    back_up(data_root, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "new")  # a row of an unknown run would fail the checks
    assert query(tmp_path / "new", "select count(*) from current_volumes")[0][0] in (2, 3)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["backup", "b", "--data-root", "empty"], "has no records"),
        (["backup", "data/b", "--data-root", "data"], "lies in the data root"),
        (["restore", "empty", "--data-root", "new"], "is no backup"),
        (["restore", "data", "--data-root", "data"], "has records already"),
    ],
)
def test_mistake_is_one_clear_line(data_root, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    done = run_ctclip(*arguments)
    assert done.returncode == 1
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
