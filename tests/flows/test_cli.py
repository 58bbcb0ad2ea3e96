"""Exit codes, error lines, tables and JSON of the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.command_line import run_ctclip, run_ctclip_process
from support.paths import ROOT
from support.processes import run_python

from tasks.run.publish import publish
from tasks.run.records import RecordWriter, new_run_id


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Warehouse of two volumes, one converted and one pending."""
    folder = tmp_path_factory.mktemp("data")
    writer = RecordWriter(folder, new_run_id(folder))
    writer.write("runs", [{"run_id": writer.run_id, "status": "running", "stage": "convert", "variant": "recipe"}])
    writer.write("volumes", [{"volume_name": f"valid_{n}_a_1", "fingerprint": "f", "split": "valid"} for n in (1, 2)])
    wanted = {"stage": "convert", "variant": "recipe", "fingerprint": "f", "is_withdrawn": False}
    writer.write("wanted", [wanted | {"item": f"valid_{n}_a_1"} for n in (1, 2)])
    writer.write("shard_volumes", [{"volume_name": "valid_1_a_1", "recipe_id": "recipe", "fingerprint": "f"}])
    publish(folder)
    return folder


@pytest.mark.parametrize(
    ("imported", "avoided"),
    [
        ("flows.cli, tasks.upkeep.queries, warehouse.store", {"torch", "prefect", "numpy", "pyarrow", "psutil"}),
        ("flows.cli", {"torch", "prefect", "duckdb", "numpy", "pyarrow", "http.client", "sqlite3"}),
        ("tasks.labels.label", {"torch", "scipy", "sklearn", "prefect"}),
        ("flows.rebuild", {"torch", "transformers", "sklearn", "numba", "dask", "scipy", "nibabel", "pydicom", "PIL"}),
        (
            "tasks.evaluation.comparisons, tasks.evaluation.evaluations, tasks.report.pages",
            {"torch", "scipy", "prefect"},
        ),
        ("flows.volumes", {"prefect", "duckdb"}),
    ],
)
def test_commands_do_not_wait_for_what_they_do_not_use(imported, avoided):
    program = f"import sys, {imported}; print(*{avoided} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == ""


def test_help_lists_every_stage():
    result = run_ctclip("--help")
    assert result.returncode == 0
    for command in ("demo", "rebuild", "ingest", "convert", "label", "train", "embed", "evaluate", "report", "plan"):
        assert command in result.stdout


def test_sql_prints_a_table_or_json(data_root):
    query = "select volume_name from current_volumes order by 1"
    assert run_ctclip("sql", query, "--data-root", data_root).stdout.split() == [
        "volume_name",
        "valid_1_a_1",
        "valid_2_a_1",
    ]
    printed = run_ctclip("sql", query, "--json", CTCLIP_DATA_ROOT=str(data_root))
    assert json.loads(printed.stdout) == [{"volume_name": "valid_1_a_1"}, {"volume_name": "valid_2_a_1"}]


def test_text_in_brackets_is_printed_as_it_is(data_root):
    assert "x[abc]y [/z]" in run_ctclip("sql", "select 'x[abc]y [/z]' as text", "--data-root", data_root).stdout


def test_saved_query_takes_parameters(data_root):
    assert "@best_model_by_label" in run_ctclip("sql", "--list").stdout
    result = run_ctclip(
        "sql", "@mentioned_but_unlabelled", "--data-root", data_root,
        "--param", "term=effusion", "--param", "abnormality=Pleural effusion",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sql", "drop table volumes"], "the SQL failed"),
        (["sql", "select * from read_csv('/etc/passwd')"], "the SQL failed"),
        (["sql", "@no_such_query"], "there is no saved query"),
        (["export", "no_such_table"], "there is no table or view"),
        (["plan", "no_such_stage"], "there is no stage"),
        (["plan", "--nonsense", "x"], "No such option: --nonsense"),
        (["convert", "--limit", "0"], "Invalid value for '--limit': "),
        (["sql", "select"], "the SQL failed"),
        (["sql", "@run_costs", "--param", "nonsense"], "is not key=value"),
    ],
)
def test_mistake_is_one_clear_line_and_exit_code_1(data_root, arguments, line):
    result = run_ctclip(*arguments, "--data-root", data_root)
    assert result.returncode == 1
    assert result.stdout == ""
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1


LEFT_RUNNING = """
import atexit, duckdb, sys, threading, time
from flows.cli import main

def hold():
    connection = duckdb.connect()
    is_held.set()
    time.sleep(600)

is_held = threading.Event()
threading.Thread(target=hold, daemon=True).start()
is_held.wait()
atexit.register(print, "exit handler")
main()
"""


def test_a_failing_command_ends_with_its_line_whatever_its_threads_hold(data_root):
    arguments = ["sql", "select", "--data-root", str(data_root)]
    done = subprocess.run(
        [sys.executable, "-c", LEFT_RUNNING, *arguments],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == "exit handler\n"
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_command_before_anything_was_made_says_what_to_run(tmp_path):
    result = run_ctclip("status", "--data-root", tmp_path)
    assert result.returncode == 1
    assert "ctclip ingest" in result.stderr


def test_status_fits_a_screen_of_80_columns(data_root):
    result = run_ctclip("status", "--data-root", data_root)
    assert "convert" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_plan_says_what_a_rerun_would_do_and_why(data_root):
    explained = json.loads(run_ctclip("plan", "convert", "--json", "--data-root", data_root).stdout)
    assert explained["pending"] == 1
    assert explained["items"] == [{"variant": "recipe", "item": "valid_2_a_1", "why": "never made"}]
    assert "1 pending of 2 wanted" in run_ctclip("plan", "convert", "--data-root", data_root).stdout


def test_export_writes_parquet_and_csv(data_root, tmp_path):
    for file_format in ("parquet", "csv"):
        path = tmp_path / f"volumes.{file_format}"
        result = run_ctclip(
            "export", "current_volumes", "--format", file_format, "--output", path, "--data-root", data_root
        )
        assert result.returncode == 0, result.stderr
    assert pq.read_table(tmp_path / "volumes.parquet").num_rows == 2
    with (tmp_path / "volumes.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_publish_from_scratch_gives_the_same_rows(data_root):
    result = run_ctclip("publish", "--from-scratch", "--data-root", data_root)
    assert result.stdout.startswith("6 rows from 4 record files")


def test_json_keeps_columns_of_the_same_name(data_root):
    printed = run_ctclip("sql", "select 1 as a, 2 as a, 3 as a_1, 4 as a", "--json", "--data-root", data_root)
    assert json.loads(printed.stdout) == [{"a": 1, "a_1": 2, "a_1_1": 3, "a_2": 4}]


def test_times_are_utc_wherever_they_are_read(data_root):
    sql = "select timestamptz '2026-11-26 12:00:00+03' as at"
    command = ["ctclip", "sql", sql, "--json", "--data-root", str(data_root)]
    read = f"import sys; from flows.cli import main; sys.argv = {command}; main()"
    (row,) = json.loads(run_python(read, environment={"TZ": "Asia/Tokyo"}))
    assert row["at"] == "2026-11-26 09:00:00+00:00"


def test_full_standard_output_is_an_error_of_one_line(data_root):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flows", "sql", "select 1", "--data-root", str(data_root)],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No space left" in line


@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_tables_are_written_to_standard_output_alone_and_whole(data_root, tmp_path, output):
    arguments = ("export", "current_volumes", "--output", output, "--data-root", data_root, "--format")
    done = run_ctclip_process(*arguments, "csv")
    assert done.stdout.startswith("volume_name,")
    assert done.stderr == f"2 rows in {output}\n"
    command = [sys.executable, "-m", "flows", *map(str, arguments)]
    file = tmp_path / "file"
    for mode, file_format in (("wb", "csv"), ("ab", "csv"), ("wb", "parquet")):
        with file.open(mode) as opened:
            subprocess.run([*command, file_format], cwd=ROOT, stdout=opened, stderr=subprocess.PIPE, check=True)
        if mode == "ab":
            assert file.read_text() == 2 * done.stdout
    assert pq.read_table(file).num_rows == 2
