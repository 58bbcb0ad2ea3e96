"""A mirror of the valid split alone, by the commands: labelled, embedded and evaluated, and never trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.command_line import Finished, run_ctclip
from support.data_roots import start_cluster
from support.rebuilds import find_labeller

from tasks.models.import_model import ImportOptions, import_model
from warehouse.store import query

pytestmark = pytest.mark.usefixtures("prefect_server")

SMOKE = ("--preset", "smoke")
MISSING = "the train split is missing: the ingested {} are of valid ({}) alone"


def run(data_root: Path, *arguments: str | Path) -> Finished:
    return run_ctclip(*arguments, "--data-root", data_root)


def assert_refused(result: Finished, line: str) -> None:
    """The command ends with exit code 1. After the stages that began, this line is alone on stderr."""
    assert (result.returncode, result.stdout) == (1, "")
    assert line in result.stderr
    assert len([line for line in result.stderr.splitlines() if not line.endswith(": begins")]) == 1


@pytest.fixture(scope="module")
def mirror(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(phantoms, tmp_path_factory.mktemp("mirror") / "valid"))
    for path in [path for path in folder.rglob("*train*") if path.is_file()]:
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def evaluated(built: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A data root with a model from elsewhere, and the summaries of its rebuild on the mirror."""
    data_root = tmp_path_factory.mktemp("evaluated")
    ((folder,),) = query(built, "select path from current_models where kind = 'ct-clip'")
    model = import_model(data_root, str(built / folder), ImportOptions()).model_id
    labeller = built / "models" / find_labeller(built)
    result = run(
        data_root, "rebuild", "--source", mirror, *SMOKE, "--model", model, "--labeller", labeller, "--json",
        "--dask-address", start_cluster(),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return data_root, json.loads(result.stdout)


def test_mirror_of_valid_is_labelled_embedded_and_evaluated(evaluated):
    data_root, summaries = evaluated
    done = {summary["stage"]: summary["done"] for summary in summaries}
    assert list(done) == ["ingest", "convert", "label", "embed", "evaluate", "report"]
    assert all(done.values())
    assert "; no train split" in summaries[0]["detail"]
    assert query(data_root, "select distinct split from current_metrics") == [("valid",)]
    assert query(data_root, "select count(*) > 0 from current_metrics where metric = 'auroc' and n > 0") == [(True,)]


@pytest.mark.slow
def test_missing_split_is_named_by_everything_that_needs_it(evaluated):
    data_root, _ = evaluated
    ((volumes, scans),) = query(data_root, "select count(*), count(distinct scan_id) from current_volumes")
    model = query(data_root, "select model_id from current_models")[0][0]
    of_volumes, of_reports = MISSING.format("volumes", volumes), MISSING.format("reports", scans)
    for arguments, line in (
        (["rebuild", *SMOKE, "--labeller", "tfidf"], of_volumes),
        (["train", *SMOKE], of_volumes),
        (["finetune", *SMOKE, "--model", model, "--kind", "lipro"], of_volumes),
        (["convert", *SMOKE, "--split", "train"], of_volumes),
        (["evaluate", *SMOKE, "--model", model, "--split", "train"], of_volumes),
        (["train-labeller", "--kind", "tfidf"], of_reports),
        (["label", "--labeller", "tfidf"], of_reports),
        (["label", "--labeller", "tfidf", "--split", "train"], of_reports),
    ):
        assert_refused(run(data_root, *arguments), line)
    assert "there is no volume of the train split" in run(data_root, "status").stdout


@pytest.mark.parametrize("command", ["convert", "download", "export latents"])
def test_volumes_that_are_not_there_are_an_error_of_every_command(evaluated, tmp_path, command):
    data_root, _ = evaluated
    names = tmp_path / "names.txt"
    names.write_text("valid_1_a_1\nvalid_999_a_1\n")
    output = ["--output", tmp_path / "latents.parquet"] if command.startswith("export") else []
    for volumes, line in (
        (tmp_path / "nowhere.txt", "is no file, no name of a volume, and no glob"),
        (names, "names that were never ingested: valid_999_a_1"),
        ("train_*", "selects none of the ingested volumes"),
    ):
        assert_refused(run(data_root, *command.split(), "--volumes", volumes, *output), f"--volumes {volumes}")
        assert line in run(data_root, *command.split(), "--volumes", volumes, *output).stderr


@pytest.mark.slow
def test_source_without_volumes_fails_and_its_reports_can_be_labelled(built, mirror, tmp_path):
    for path in mirror.rglob("*"):
        if path.is_file() and not path.name.endswith(".nii.gz"):
            shutil.copy(path, tmp_path)
    data_root = tmp_path / "data"
    for _ in range(2):  # a second run fails too
        result = run(data_root, "ingest", "--source", tmp_path)
        assert_refused(result, f"volumes of the tables are in file://{tmp_path}")
        assert "Rows of volumes stay as they were, other tables are recorded" in result.stderr
    assert_refused(run(data_root, "convert", *SMOKE), "there are no volumes yet: run `ctclip ingest --source …`")
    status = run(data_root, "status").stdout
    assert "failed" in status
    assert "there is no volume yet: run `ctclip ingest --source …`" in status
    labelled = run(data_root, "label", "--labeller", built / "models" / find_labeller(built), "--json")
    assert json.loads(labelled.stdout)["done"] > 0


def test_source_that_is_gone_is_named(mirror, tmp_path):
    source, data_root = Path(shutil.copytree(mirror, tmp_path / "source")), tmp_path / "data"
    assert run(data_root, "ingest", "--source", source).returncode == 0
    source.rename(tmp_path / "elsewhere")
    assert_refused(run(data_root, "convert", *SMOKE), f"{source} is not there: mount it")
    assert_refused(run(data_root, "ingest"), f"{source} is no folder that can be read")
