"""Finders of models: they read the published warehouse alone, and a stage publishes before it asks them."""

from pathlib import Path

import pytest
from support.records import write_run

from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.models.find import find_encoder, find_model
from tasks.plan.explain import explain_plan
from tasks.run.publish import publish


def model(name: str, **columns: object) -> dict[str, object]:
    row = {
        "model_id": name, "kind": "ct-clip", "preset": "smoke", "path": f"models/{name}", "recipe_id": "smoke-1",
        "logit_scale": 1.0, "fingerprint": name, "weights_sha256": f"sha256 of {name}", "config": "{}",
    }  # fmt: skip
    return row | columns


def files(data_root: Path) -> dict[Path, tuple[int, int, int]]:
    stats = {path: path.stat() for path in data_root.rglob("*")}
    return {path: (found.st_ino, found.st_size, found.st_mtime_ns) for path, found in stats.items()}


def test_newest_trained_model_of_the_preset_goes_before_an_imported_one(tmp_path):
    write_run(tmp_path, 0, "train", models=[model("old")])
    write_run(tmp_path, 1, "train", models=[model("new")])
    write_run(
        tmp_path, 2, "import-model", models=[model("imported", source_sha256="ab"), model("other", preset="tiny")]
    )
    publish(tmp_path)
    assert find_model(tmp_path, "smoke", None).model_id == "new"
    assert find_model(tmp_path, "smoke", "old").folder == tmp_path.resolve() / "models/old"
    assert find_model(tmp_path, "tiny", None).model_id == "other"
    with pytest.raises(ConfigurationError, match="no model 'absent'"):
        find_model(tmp_path, "smoke", "absent")
    with pytest.raises(MissingInputError, match="no model of preset 'published' yet"):
        find_model(tmp_path, "published", None)


def test_encoder_of_a_lipro_is_its_parent_unless_that_was_trained_again(tmp_path):
    child = {"kind": "lipro", "parent_model_id": "parent", "config": '{"parent_weights_sha256": "sha256 of parent"}'}
    write_run(tmp_path, 0, "train", models=[model("parent"), model("child", **child)])
    publish(tmp_path)
    assert find_encoder(tmp_path, "smoke", "child").model_id == "parent"
    assert find_encoder(tmp_path, "smoke", "parent").model_id == "parent"
    write_run(tmp_path, 1, "train", models=[model("parent", weights_sha256="others")])
    publish(tmp_path)
    assert find_encoder(tmp_path, "smoke", "child").model_id == "child"


@pytest.mark.usefixtures("prefect_server")
def test_model_that_a_killed_run_left_unpublished_is_found_by_a_stage_and_not_published_by_a_question(tmp_path):
    from flows.report import report

    publish(tmp_path)
    write_run(tmp_path, 0, "train", status=None, models=[model("left")])
    before = files(tmp_path)
    with pytest.raises(MissingInputError, match="no model of preset 'smoke' yet"):
        find_model(tmp_path, "smoke", None)
    assert explain_plan(tmp_path, "embed", 5, {"preset": "smoke"})["items"] == []
    assert files(tmp_path) == before
    assert report(tmp_path, "smoke")["variant"] == "left"
    assert find_model(tmp_path, "smoke", None).model_id == "left"
