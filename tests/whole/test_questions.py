"""Questions leave the data root as it was, even if it has records that are not published yet."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from support.command_line import run_ctclip
from support.records import label_rows, report_row, volume_row, wanted_rows, write_run

from ctclip_model.errors import MissingInputError
from ctclip_model.training.engine.state import state_folder
from tasks.labels.labellers import find_labeller, find_newest_labeller, read_trained_on
from tasks.models.find import find_encoder, find_model
from tasks.plan.explain import explain_plan
from tasks.run.stage_run import open_run
from tasks.settings import STAGES
from tasks.training.records import describe_stale, find_trained, is_unfinished
from tasks.upkeep.queries import list_stale_models
from warehouse import store


def model_row(data_root: Path, model_id: str, kind: str, preset: str) -> dict[str, object]:
    """Row of a model whose folder holds weights, and the older state of its training."""
    folder = data_root / "models" / model_id
    state = state_folder(folder)
    state.mkdir(parents=True)
    (state / "step-1").write_text("checkpoint")
    os.utime(state / "step-1", (1, 1))
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(model_id.encode())
    (folder / "config.json").write_text("{}")
    return {
        "model_id": model_id, "kind": kind, "preset": preset, "path": f"models/{model_id}", "recipe_id": "recipe",
        "logit_scale": 1.0, "fingerprint": f"training of {model_id}",
        "weights_sha256": hashlib.sha256(model_id.encode()).hexdigest(), "config": "{}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """A published run, and a later run whose records wait for a publish, as after a kill."""
    root = tmp_path_factory.mktemp("root").resolve()
    write_run(
        root, 0, "ingest",
        volumes=[volume_row("train_1_a_1")], reports=[report_row("train_1_a")],
        published_labels=label_rows(["train_1_a"], np.ones((1, 18))),
        wanted=wanted_rows("convert", "recipe", {"train_1_a_1": "f"}),
        models=[model_row(root, "old", "ct-clip", "smoke"), model_row(root, "tfidf-old", "labeller", "tfidf")],
        model_samples=[{"model_id": "tfidf-old", "sample_id": "train_1_a", "split": "train", "fingerprint": "f"}],
    )  # fmt: skip
    store.publish(root)
    write_run(
        root, 1, "label", status=None,
        volumes=[volume_row("train_2_a_1")], wanted=wanted_rows("convert", "recipe", {"train_2_a_1": "f"}),
        models=[model_row(root, "new", "ct-clip", "smoke"), model_row(root, "tfidf-new", "labeller", "tfidf")],
    )  # fmt: skip
    return root


def read_files(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Size, time of change and SHA-256 of every file, and the time of every folder: a removed file changes it."""
    return {
        str(path.relative_to(folder)): (
            (path.stat().st_size, path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            if path.is_file()
            else (0, path.stat().st_mtime_ns, "")
        )
        for path in (folder, *sorted(folder.rglob("*")))
    }


COMMANDS = [
    *(["plan", stage] for stage in STAGES),
    *(["plan", stage, "--preset", "smoke", "--json"] for stage in STAGES if stage != "ingest"),
    ["plan", "label", "--labeller", "tfidf"],
    ["plan", "embed", "--model", "old"],
    ["status"],
    ["status", "--json"],
    ["sql", "select count(*) from volumes"],
    ["sql", "@run_costs"],
    ["sql", "--list"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_command_that_asks_writes_nothing(data_root, arguments):
    before = read_files(data_root)
    done = run_ctclip(*arguments, "--data-root", data_root)
    assert done.returncode == 0, done.stderr
    assert read_files(data_root) == before


@pytest.mark.parametrize("arguments", [["volumes"], ["models", "--format", "csv"], ["latents"]], ids=" ".join)
def test_export_writes_its_output_alone(data_root, tmp_path, arguments):
    before = read_files(data_root)
    run_ctclip("export", *arguments, "--data-root", data_root, "--output", tmp_path / "out")
    assert read_files(data_root) == before


QUESTIONS = {
    "find_model": lambda root: find_model(root, "smoke", None).model_id,
    "find_model by id": lambda root: find_model(root, "other", "old").model_id,
    "find_encoder": lambda root: find_encoder(root, "smoke", None).model_id,
    "find_trained": lambda root: find_trained(root, "training of old"),
    "find_labeller": lambda root: find_labeller(root, "tfidf").labeller_id,
    "find_newest_labeller": lambda root: getattr(find_newest_labeller(root, "tfidf"), "labeller_id", None),
    "read_trained_on": lambda root: len(read_trained_on(root, "tfidf-old") or ()),
    "is_unfinished": lambda root: is_unfinished(root, "training of old"),
    "describe_stale": lambda root: describe_stale(root, "training of old"),
    "list_stale_models": list_stale_models,
    "explain_plan": lambda root: explain_plan(root, "convert", 5)["stage"],
}
ANSWERS = {
    "find_model": "old", "find_model by id": "old", "find_encoder": "old", "find_trained": "old",
    "find_labeller": "tfidf-old", "find_newest_labeller": "tfidf-old", "read_trained_on": 1, "is_unfinished": False,
    "describe_stale": "", "list_stale_models": [], "explain_plan": "convert",
}  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_question_reads_what_is_published_and_writes_nothing(data_root, name):
    before = read_files(data_root)
    assert QUESTIONS[name](data_root) == ANSWERS[name]
    assert read_files(data_root) == before


def test_question_without_a_warehouse_writes_nothing(tmp_path):
    write_run(tmp_path, 0, models=[model_row(tmp_path, "old", "ct-clip", "smoke")])
    before = read_files(tmp_path)
    for name, question in QUESTIONS.items():
        with pytest.raises(MissingInputError):
            question(tmp_path)
        assert read_files(tmp_path) == before, name
    for arguments in COMMANDS:
        run_ctclip(*arguments, "--data-root", tmp_path)
        assert read_files(tmp_path) == before, arguments


def test_stage_publishes_what_a_killed_run_left_before_it_asks(tmp_path):
    write_run(tmp_path, 0, models=[model_row(tmp_path, "tfidf-old", "labeller", "tfidf")])
    store.publish(tmp_path)
    write_run(tmp_path, 1, status=None, models=[model_row(tmp_path, "tfidf-new", "labeller", "tfidf")])
    with open_run(tmp_path, "label"):
        assert find_labeller(tmp_path, "tfidf").labeller_id == "tfidf-new"
