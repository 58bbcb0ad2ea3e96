"""`ctclip predict --output`: rows as they come, no half row, a rerun that goes on, one call at a time."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.command_line import TERMINAL, run_ctclip
from support.models import save_random_model
from support.paths import ROOT
from support.volumes import save_nifti

from ctclip_model.config import tiny

SPACING_MM = (9.0, 9.0, 9.0)
COUNT = 5
# Kills its own process in the middle of the third row.
KILLED = """
import os, sys
from flows import row_file
append, count = row_file.RowFile._write, 0
def write(self, data):
    global count
    if data.strip() != self.head.encode().strip():
        count += 1
    if count == 3:
        os.lseek(self.file.fileno(), 0, os.SEEK_END)
        os.write(self.file.fileno(), data[:40])
        os.kill(os.getpid(), 9)
    append(self, data)
row_file.RowFile._write = write
from flows.cli import main
main()
"""


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_root = tmp_path_factory.mktemp("data")
    save_random_model(data_root / "models" / "tiny-own", tiny())
    return data_root


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder of five volumes, two of one name in two folders, a truncated one, and files that are no CT."""
    folder = tmp_path / "study"
    for number, name in enumerate(("a/scan.nii.gz", "b/scan.nii.gz", "c.nii", "odd\nname.nii", "e.nii.gz")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        voxels = np.random.default_rng(number).integers(-1000, 500, (30, 30, 20), dtype=np.int16)
        save_nifti(folder / name, voxels, SPACING_MM)
    (folder / "d.nii.gz").write_bytes((folder / "e.nii.gz").read_bytes()[:4000])
    (folder / "notes.txt").write_text("no CT")
    (folder / "photo.nii.gz").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(400))
    return folder


def predict(study: Path, output: Path, data_root: Path, *options: str | Path):
    return run_ctclip("predict", study, "--output", output, "--data-root", data_root, *options)


def run_killed(study: Path, output: Path, data_root: Path) -> int:
    """Exit code of a call that kills its own process."""
    arguments = ["predict", study, "--output", output, "--data-root", data_root]
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | TERMINAL, capture_output=True, check=False).returncode


@contextmanager
def limit_file_size(count_bytes: int) -> Iterator[None]:
    """No file of this process may have more bytes within the block, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read_rows(path: Path) -> list[dict[str, str]]:
    assert path.read_bytes().endswith(b"\n")
    lines = path.read_text().splitlines()
    return list(csv.DictReader(lines)) if path.suffix == ".csv" else [json.loads(line) for line in lines]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_call_killed_in_the_middle_of_a_row_is_gone_on_with(data_root, study, tmp_path, suffix):
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"rows{suffix}"
    reference = predict(study, whole, data_root)
    assert reference.returncode == 1
    assert "5 rows added, 0 were there, 2 of 7 failed" in reference.stdout
    assert run_killed(study, output, data_root) == -signal.SIGKILL
    assert not output.read_bytes().endswith(b"\n")
    again = predict(study, output, data_root)
    assert "3 rows added, 2 were there, 2 of 7 failed" in again.stdout
    assert output.read_bytes() == whole.read_bytes()
    assert len({row["file"] for row in read_rows(output)}) == COUNT
    done = output.stat().st_mtime_ns
    assert "0 rows added, 5 were there" in predict(study, output, data_root).stdout
    assert output.stat().st_mtime_ns == done


def test_half_of_the_very_first_line_is_begun_again(data_root, study, tmp_path):
    for name, half in (("rows.csv", "file,spac"), ("rows.jsonl", '{"file": "/da'), ("more.jsonl", '{"fi')):
        (tmp_path / name).write_text(half)
        assert "5 rows added" in predict(study, tmp_path / name, data_root).stdout
        assert len(read_rows(tmp_path / name)) == COUNT


def test_failures_are_listed_at_the_end_and_make_the_exit_code_1(data_root, study, tmp_path):
    result = predict(study, tmp_path / "rows.csv", data_root)
    assert result.returncode == 1
    end = result.stderr.splitlines()[-3:]
    assert end[0] == "ctclip: 2 of 7 volumes failed:"
    assert {Path(line.split(": [")[0].strip()).name for line in end[1:]} == {"d.nii.gz", "photo.nii.gz"}
    assert end[1].endswith("[truncated]")
    for name in ("d.nii.gz", "photo.nii.gz"):
        (study / name).unlink()
    assert predict(study, tmp_path / "rows.csv", data_root).returncode == 0
    printed = json.loads(predict(study, tmp_path / "rows.csv", data_root, "--json").stdout)
    assert (printed["volumes"], printed["done_before"], printed["failed"]) == (5, 5, [])


def test_a_changed_volume_and_a_changed_model_are_predicted_again(data_root, study, tmp_path):
    output = tmp_path / "rows.jsonl"
    predict(study, output, data_root)
    before = {row["file"]: row for row in read_rows(output)}
    voxels = np.random.default_rng(9).integers(-1000, 500, (30, 30, 20), dtype=np.int16)
    save_nifti(study / "c.nii", voxels, SPACING_MM)
    os.utime(study / "c.nii", ns=(1, 1))
    assert "1 rows added, 4 were there" in predict(study, output, data_root).stdout
    after = {row["file"]: row for row in read_rows(output)}
    assert {name for name in before if after[name] != before[name]} == {str(study / "c.nii")}
    assert len(read_rows(output)) == COUNT
    assert "5 rows added" in predict(study, output, data_root, "--orientation", "RAS").stdout
    assert len(read_rows(output)) == COUNT


def test_evidence_of_two_volumes_of_one_name_stays_apart_over_calls(data_root, study, tmp_path):
    output, maps = tmp_path / "rows.csv", tmp_path / "maps"
    predict(study, output, data_root, "--evidence", maps)
    head, first, second, *_ = output.read_text().splitlines(keepends=True)
    output.write_text(head + first + second[:50])  # as a killed call leaves it
    predict(study, output, data_root, "--evidence", maps)
    rows = read_rows(output)
    assert len({row["evidence"] for row in rows}) == COUNT
    assert all((Path(row["evidence"]) / "evidence.png").is_file() for row in rows)
    (Path(rows[0]["evidence"]) / "evidence.png").unlink()
    assert "1 rows added, 4 were there" in predict(study, output, data_root, "--evidence", maps).stdout


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_full_disk_leaves_whole_rows_and_one_line(data_root, study, tmp_path, suffix):
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"rows{suffix}"
    predict(study, whole, data_root)
    size = whole.stat().st_size
    with limit_file_size(size - 100):
        result = predict(study, output, data_root)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"ctclip: {output}: cannot be written: File too large")
    assert len(read_rows(output)) == COUNT - 1
    assert "1 rows added, 4 were there" in predict(study, output, data_root).stdout
    assert output.read_bytes() == whole.read_bytes()


def test_a_second_call_into_the_same_file_is_refused(data_root, study, tmp_path):
    output = tmp_path / "rows.csv"
    with output.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = predict(study, output, data_root)
    assert (result.returncode, result.stdout) == (1, "")
    assert "another call is writing this file" in result.stderr
    assert output.read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", b"patient,age\n1,2\n"), ("a.csv", b"no line"), ("a.jsonl", b"[1]\n"), ("a.jsonl", b'{"file": 1}\n'),
     ("a.csv", b"\xff\xfe\n")],
)  # fmt: skip
def test_a_file_of_other_content_is_refused_and_left_alone(data_root, study, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    result = predict(study, tmp_path / name, data_root)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "name another file" in result.stderr
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("output", ["rows.txt", "no/rows.csv", "/dev/null", "."])
def test_a_place_for_no_rows_is_refused(data_root, study, tmp_path, output):
    result = predict(study, tmp_path / output, data_root)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
