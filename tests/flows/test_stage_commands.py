"""Every command that runs a flow, in this process, on a few phantoms and the preset `smoke`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from support.command_line import run_ctclip
from support.processes import wait_for

from flows.options import OPTIONS
from flows.results import show_results
from warehouse.store import query

pytestmark = pytest.mark.usefixtures("prefect_server")

SMOKE = ["--preset", "smoke"]
# Arguments of each command, in the order of the work, and the least number of items that it has to make.
CALLS: dict[str, tuple[list[str], int]] = {
    "ingest": (["--source", "SOURCE", "--storage", "v2"], 1),
    "download": ([*SMOKE, "--limit", "1", "--max-mb-per-s", "1"], 0),  # local files need no download
    "convert": ([*SMOKE, "--uncompressed", "--download-threads", "1"], 12),
    "train-labeller": ([*SMOKE, "--kind", "tfidf", "--dtype", "float32"], 1),
    "label": (["--labeller", "tfidf", "--device", "cpu"], 12),
    "train": ([*SMOKE, "--labeller", "tfidf", "--at-once", "2", "--no-recompute", "--validate-every", "0"], 1),
    "embed": ([*SMOKE, "--device", "cpu"], 24),
    "finetune": ([*SMOKE, "--kind", "lipro", "--labels", "published", "--seed", "0"], 1),
    "evaluate": ([*SMOKE, "--split", "valid", "--unit", "scan"], 1),
    "report": (SMOKE, 1),
}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "data"


@pytest.fixture(scope="module")
def summaries(data_root: Path, few_phantoms: Path) -> dict[str, Any]:
    """Summary of each command's run, all on one data root."""
    calls = {
        name: [str(few_phantoms) if word == "SOURCE" else word for word in words] for name, (words, _) in CALLS.items()
    }
    return {name: run(data_root, name, *arguments) for name, arguments in calls.items()}


def run(data_root: Path, name: str, *arguments: str) -> Any:
    result = run_ctclip(name, "--json", "--data-root", data_root, *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_every_command_that_runs_a_flow_is_run_here():
    assert set(CALLS) | {"demo", "rebuild"} == set(OPTIONS)


@pytest.mark.parametrize("name", CALLS)
def test_command_does_the_work_of_its_stage(summaries, name):
    summary = summaries[name][0] if isinstance(summaries[name], list) else summaries[name]
    assert summary["stage"] == name
    assert summary["done"] >= CALLS[name][1], summary
    assert not summary["rejected"]


def test_rebuild_of_finished_stages_has_nothing_to_do(data_root, summaries):
    done = run(data_root, "rebuild", *SMOKE, "--labeller", "tfidf", "--from", "convert", "--to", "embed")
    assert [(summary["stage"], summary["done"]) for summary in done] == [
        ("convert", 0), ("label", 0), ("train", 0), ("embed", 0),
    ]  # fmt: skip


def list_task_runs(data_root: Path, flow: str) -> list[str]:
    """Names of the task runs of a flow's newest run on a data root. It must have ended well."""
    filters = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}
    with get_client(sync_client=True) as client:
        runs = client.request("POST", "/flow_runs/filter", json=filters).json()
        newest = next(one for one in runs if one["parameters"]["data_root"] == str(data_root))
        assert newest["state"]["type"] == "COMPLETED"
        one = {"flow_runs": {"id": {"any_": [newest["id"]]}}}
        return [task["name"] for task in client.request("POST", "/task_runs/filter", json=one).json()]


@pytest.mark.usefixtures("summaries")
def test_a_stage_with_nothing_to_do_is_a_flow_run_without_task_runs(data_root):
    run(data_root, "rebuild", *SMOKE, "--labeller", "tfidf", "--from", "convert", "--to", "label")
    run(data_root, "embed", *SMOKE, "--force")
    wait_for(lambda: list_task_runs(data_root, "embed"))  # the server takes task runs in their order
    assert list_task_runs(data_root, "convert") == list_task_runs(data_root, "label") == []


@pytest.mark.usefixtures("summaries")
def test_report_and_rebuild_write_the_index_and_link_to_it(data_root):
    index = data_root / "reports" / "index.html"
    pages = [page.name for page in index.parent.glob("*.html") if page != index]
    assert pages
    assert all(f'href="{page}"' in index.read_text() for page in pages)
    for arguments in (("report", *SMOKE), ("rebuild", *SMOKE, "--from", "convert", "--to", "convert")):
        index.unlink()
        run(data_root, *arguments)
        assert index.is_file()
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["index-page"]}}})
    # Other tests share the server and write an index of their own.
    assert sum(index.resolve().as_uri() in artifact["data"] for artifact in found.json()) >= 2


@pytest.mark.usefixtures("summaries")
def test_rebuild_that_fails_writes_the_index_and_one_that_cannot_begin_does_not(data_root, tmp_path):
    index = data_root / "reports" / "index.html"
    for arguments, is_written in ((("--from", "nowhere"), False), (("--source", tmp_path / "nowhere"), True)):
        index.unlink(missing_ok=True)
        done = run_ctclip("rebuild", *SMOKE, "--data-root", data_root, *arguments)
        assert done.returncode == 1
        assert index.exists() == is_written


@pytest.mark.slow
@pytest.mark.usefixtures("summaries")
def test_an_index_that_cannot_be_written_is_one_warning_except_where_it_is_asked_for(data_root):
    index = data_root / "reports" / "index.html"
    index.unlink(missing_ok=True)
    index.mkdir()
    for arguments in (("report", *SMOKE), ("rebuild", *SMOKE, "--from", "convert", "--to", "convert")):
        done = run_ctclip(*arguments, "--json", "--data-root", data_root)
        assert done.returncode == 0
        assert done.stderr.count("the index page was not written: ") == 1
    done = run_ctclip("report", "--index", "--data-root", data_root)
    assert done.returncode == 1
    assert "the index page cannot be written" in done.stderr
    index.rmdir()


def test_index_of_an_empty_data_root_needs_no_model_and_records_nothing(tmp_path):
    summary = run(tmp_path, "report", "--index")
    assert (summary["stage"], summary["done"]) == ("report", 1)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["reports", "reports/index.html"]


@pytest.mark.usefixtures("summaries")
def test_rebuild_works_on_the_model_that_reads_the_sections_in_its_order(data_root):
    from flows.options import RebuildOptions
    from flows.rebuild import list_calls

    (known,) = list_calls("embed", RebuildOptions(data_root=data_root, preset="smoke"))
    reversed_order = RebuildOptions(data_root=data_root, preset="smoke", report_sections=("impression", "findings"))
    assert known["model"] in dict(query(data_root, "select model_id, kind from current_models"))
    assert list_calls("embed", reversed_order) == [{"model": None}]  # it has to be trained first


@pytest.mark.usefixtures("summaries")
def test_rebuild_sets_every_page_but_its_own_against_a_model(data_root):
    from flows.options import RebuildOptions
    from flows.rebuild import list_calls

    (trained, *finetuned) = list_calls("report", RebuildOptions(data_root=data_root, preset="smoke"))
    options = RebuildOptions(data_root=data_root, preset="smoke", against=trained["model"])
    assert list_calls("report", options) == [trained | {"against": None}, *finetuned]
    assert list_calls("evaluate", options) == [trained, *finetuned]
    done = run_ctclip("rebuild", *SMOKE, "--data-root", data_root, "--against", "unknown")
    assert (done.returncode, done.stderr.count("there is no model 'unknown'")) == (1, 1)


@pytest.mark.usefixtures("summaries")
def test_results_of_the_demonstration_show_the_newest_model_beside_its_page(data_root, capsys):
    show_results(data_root.parent)
    lines = capsys.readouterr().out.splitlines()
    columns = next(line for line in lines if line.startswith("abnormality"))
    assert columns.split() == ["abnormality", "zero-shot", "lipro", "vocabfine", "n_positive", "n"]
    assert [line.split()[0] for line in lines if "macro" in line] == ["macro"]
    (page,) = (line.removeprefix("Open").strip() for line in lines if line.startswith("Open"))
    assert Path(page).is_file()
