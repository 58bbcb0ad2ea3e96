"""Lineage of runs: OpenLineage events with what a stage read and wrote."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.command_line import run_ctclip
from support.records import RUNS, write_run

from tasks.run.records import RecordWriter
from tasks.upkeep.lineage import describe_run
from warehouse import store

HUB = "hf://datasets/someone/ct"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ingest, a conversion, an ingest of a newer revision, and a failed and a dead evaluation."""
    folder = tmp_path_factory.mktemp("data")
    write_run(folder, 0, "ingest", sources=[{"source": HUB, "revision": "old"}])
    write_run(folder, 1, "convert", variant="recipe")
    write_run(folder, 2, "ingest", sources=[{"source": HUB, "revision": "new"}])
    write_run(folder, 3, "evaluate", variant="m", status="failed")
    write_run(folder, 4, "evaluate", variant="m", status=None)
    died = {"run_id": RUNS[4], "status": "died", "recorded_at": datetime(2026, 11, 24, tzinfo=UTC)}
    writer = RecordWriter(folder, RUNS[4])
    writer.count_files = 9  # beyond the files of the run
    writer.write("runs", [died])
    store.publish(folder)
    return folder


def test_events_of_a_run_name_what_it_read_and_wrote(data_root):
    start, end = describe_run(data_root, RUNS[1])
    assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == end["run"]["runId"] == str(uuid.UUID(end["run"]["runId"]))
    assert start["eventTime"] < end["eventTime"]
    assert end["job"] == {"namespace": "ctclip", "name": "convert"}
    root = data_root.resolve()
    assert end["inputs"] == [{"namespace": f"file://{root}/warehouse.duckdb", "name": "volumes"}]
    assert end["outputs"] == [{"namespace": "file", "name": f"{root}/shards"}]
    facts = end["run"]["facets"]["ctclip_run"]
    assert (facts["run_id"], facts["variant"], facts["status"]) == (RUNS[1], "recipe", "completed")


@pytest.mark.parametrize(("run", "revision"), [(0, "old"), (2, "new")])
def test_source_has_the_revision_of_its_time(data_root, run, revision):
    for event in describe_run(data_root, RUNS[run]):
        (source,) = event["inputs"]
        assert (source["namespace"], source["name"]) == ("hf", "datasets/someone/ct")
        assert source["facets"]["version"]["datasetVersion"] == revision


@pytest.mark.parametrize(("run", "kind"), [(3, "FAIL"), (4, "ABORT")])
def test_end_of_a_run_that_failed_or_died(data_root, run, kind):
    end = describe_run(data_root, RUNS[run])[-1]
    assert (end["eventType"], end["job"]["name"]) == (kind, "evaluate")


def test_command_writes_lines_of_json_of_a_run_by_the_beginning_of_its_id(data_root, tmp_path):
    path = tmp_path / "run.jsonl"
    result = run_ctclip("export", "lineage", RUNS[1][:-3], "--output", path, "--data-root", data_root)
    assert result.returncode == 0, result.stderr
    assert [json.loads(line) for line in path.read_text().splitlines()] == describe_run(data_root, RUNS[1])


def test_stage_stands_for_its_latest_run(data_root):
    assert describe_run(data_root, "ingest") == describe_run(data_root, RUNS[2])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["lineage"], "takes a run or a stage"),
        (["volumes", RUNS[0]], "takes a run or a stage"),
        (["lineage", "absent"], "there is no run 'absent'"),
        (["lineage", RUNS[0][:5]], "5 runs begin with"),
        (["lineage", RUNS[0], "--format", "csv"], "leave --format out"),
    ],
)
def test_wrong_run_is_one_line_and_leaves_no_file(data_root, tmp_path, arguments, line):
    result = run_ctclip("export", *arguments, "--output", tmp_path / "x", "--data-root", data_root)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert line in result.stderr
    assert list(tmp_path.iterdir()) == []
