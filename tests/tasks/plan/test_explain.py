"""`ctclip plan` names the part of a fingerprint that changed, and writes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support.records import report_row, volume_row, write_run

from ctclip_model.config import VERSIONS, smoke
from ctclip_model.device import Precision
from ctclip_model.errors import VolumeError
from tasks.labels.label import plan_labels
from tasks.plan.explain import explain_plan
from tasks.run.pending import plan_items
from tasks.run.publish import publish
from tasks.run.selection import Selection
from tasks.run.stage_run import open_run
from tasks.settings import STAGES
from tasks.training.manifest import config_fingerprint
from tasks.volumes.jobs import read_volumes

RECIPE = smoke().recipe
NAMES = ("train_1_a_1", "train_2_a_1", "valid_1_a_1")


def record_conversion(data_root: Path, *, bad: str | None = None) -> None:
    """Records the current volumes as converted, except one that is rejected."""
    (data_root / "x.arrow").touch()
    with open_run(data_root, "convert", RECIPE.recipe_id, parameters={"preset": "smoke"}) as run:
        volumes = read_volumes(data_root, RECIPE, None)
        wanted = {name: volume.fingerprint for name, volume in volumes.items()}
        pending = plan_items(run, RECIPE.recipe_id, wanted)
        done = [
            {"volume_name": name, "recipe_id": RECIPE.recipe_id, "fingerprint": fingerprint, "shard_path": "x.arrow"}
            for name, fingerprint in pending.items()
            if name != bad
        ]
        run.record("shard_volumes", done)
        if bad:
            run.reject(VolumeError(bad, "truncated", "ends early"), fingerprint=pending[bad])


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    write_run(tmp_path, 0, "ingest", volumes=[volume_row(name) for name in NAMES])
    publish(tmp_path)
    return tmp_path


def test_stage_that_never_ran_says_so_and_plans_everything(data_root):
    plan = explain_plan(data_root, "convert", 5, {"preset": "smoke"})
    assert (plan["pending"], plan["reasons"], plan["notes"]) == (3, {"never made": 3}, ["convert has never run"])
    assert "no model of preset" in explain_plan(data_root, "embed", 5)["notes"][1]


def test_plan_names_the_part_that_moved_item_by_item(data_root):
    record_conversion(data_root, bad="valid_1_a_1")
    assert explain_plan(data_root, "convert", 5)["pending"] == 0  # the rejected file is the same
    moved = [
        volume_row(NAMES[0], sha256="s" * 64),
        volume_row(NAMES[1], spacing_z_mm=1.5),
        volume_row(NAMES[2], sha256="mended"),
    ]
    write_run(data_root, 1, "ingest", volumes=[*moved, volume_row("train_9_a_1")])
    publish(data_root)
    plan = explain_plan(data_root, "convert", 5)
    assert plan["reasons"] == {
        "file changed": 1, "spacing changed": 1, "file changed since it was rejected": 1, "never made": 1,
    }  # fmt: skip
    assert "spacing changed: spacing [0.7, 0.7, 1.0] → [0.7, 0.7, 1.5]" in [item["why"] for item in plan["items"]]


def test_raised_version_is_named_before_any_run(data_root, monkeypatch):
    record_conversion(data_root)
    monkeypatch.setitem(VERSIONS, "convert", 99)
    assert explain_plan(data_root, "convert", 5)["reasons"] == {"VERSION of convert raised": 3}


def label_reports(data_root: Path, labeller_id: str) -> None:
    with open_run(data_root, "label", labeller_id) as run:
        fingerprints = plan_labels(run, labeller_id, Precision.float32, Selection(), force=False, retry_rejects=False)
        made = {"abnormality": "Lung nodule", "labeller_id": labeller_id, "probability": 0.5, "value": 0}
        run.record(
            "labels",
            [made | {"scan_id": scan, "fingerprint": fingerprint} for scan, (_, fingerprint) in fingerprints.items()],
        )


@pytest.mark.parametrize(("source_sha256", "pending"), [(None, 1), ("a" * 64, 0)], ids=["trained here", "imported"])
def test_new_rules_of_reading_move_only_the_labels_of_labellers_trained_here(
    data_root, monkeypatch, source_sha256, pending
):
    model = {"model_id": "labeller-1", "kind": "labeller", "preset": "x", "path": "models/labeller-1"}
    write_run(data_root, 1, "train-labeller", models=[model | {"fingerprint": "f", "source_sha256": source_sha256}])
    write_run(data_root, 2, "ingest", reports=[report_row("train_1_a", "Clear.")])
    publish(data_root)
    label_reports(data_root, "labeller-1")
    assert explain_plan(data_root, "label", 5)["pending"] == 0
    monkeypatch.setitem(VERSIONS, "label", VERSIONS["label"] + 1)
    assert explain_plan(data_root, "label", 5)["pending"] == pending


def test_changed_report_text_is_pending(data_root):
    write_run(data_root, 1, "ingest", reports=[report_row("train_1_a", "Clear."), report_row("train_2_a", "A nodule.")])
    label_reports(data_root, "labeller-1")
    assert explain_plan(data_root, "label", 5)["pending"] == 0
    write_run(data_root, 2, "ingest", reports=[report_row("train_2_a", "A mass.")])
    publish(data_root)
    assert explain_plan(data_root, "label", 5)["reasons"] == {"text changed": 1}
    other = explain_plan(data_root, "label", 5, {"labeller": "tfidf"})
    assert (other["wanted"], other["notes"][0][:28]) == (0, "no tf-idf labeller is traine")


def test_training_names_the_setting_that_differs_from_the_newest_model(data_root):
    preset = smoke()
    older = dataclasses.replace(preset, training=dataclasses.replace(preset.training, samples=7))
    model = {
        "model_id": "smoke-1", "kind": "ct-clip", "preset": "smoke", "path": "models/smoke-1",
        "fingerprint": config_fingerprint(older), "config": json.dumps(dataclasses.asdict(older), sort_keys=True),
    }  # fmt: skip
    write_run(data_root, 1, "train", variant="smoke", models=[model])
    publish(data_root)
    plan = explain_plan(data_root, "train", 5, {"preset": "smoke"})
    why = f"training.samples changed: training.samples 7 → {preset.training.samples}"
    assert [item["why"] for item in plan["items"]] == [why]


def test_training_names_no_setting_that_is_newer_than_the_model_and_has_its_default(data_root):
    preset = smoke()
    older = dataclasses.asdict(dataclasses.replace(preset, training=dataclasses.replace(preset.training, seed=7)))
    for settings, name in ((older["model"]["vision"], "pooling"), (older["training"], "prompt_loss_weight")):
        del settings[name]
    model = {
        "model_id": "smoke-1", "kind": "ct-clip", "preset": "smoke", "path": "models/smoke-1", "fingerprint": "other",
        "config": json.dumps(older, sort_keys=True),
    }  # fmt: skip
    write_run(data_root, 1, "train", variant="smoke", models=[model])
    publish(data_root)
    (item,) = explain_plan(data_root, "train", 5, {"preset": "smoke"})["items"]
    assert item["why"] == "training.seed changed: training.seed 7 → 0"


def test_plan_leaves_the_data_root_as_it_was(data_root):
    record_conversion(data_root)
    write_run(data_root, 1, "train", variant="smoke", models=[{"model_id": "m", "kind": "ct-clip", "preset": "smoke"}])
    before = {path: path.stat().st_mtime_ns for path in data_root.rglob("*")}
    for stage in STAGES:
        explain_plan(data_root, stage, 5, {"preset": "smoke"})
    assert {path: path.stat().st_mtime_ns for path in data_root.rglob("*")} == before
