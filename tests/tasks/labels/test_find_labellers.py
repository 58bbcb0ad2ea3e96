"""Finding a labeller: by name, from the published warehouse alone, or not at all."""

import json
from pathlib import Path

import pytest
from support.records import write_run

from ctclip_model.config import FOLDER_WEIGHTS
from ctclip_model.errors import MissingInputError
from tasks.labels.labellers import find_labeller, find_newest_labeller
from tasks.run.lost import MODEL_FILES
from tasks.run.publish import publish


def labeller(name: str, kind: str) -> dict[str, str]:
    return {"model_id": name, "kind": "labeller", "preset": kind, "path": f"models/{name}", "fingerprint": name}


def write_folder(data_root: Path, model_id: str) -> None:
    """A model folder whose files are there, and hold nothing."""
    folder = data_root / "models" / model_id
    folder.mkdir(parents=True)
    for name in MODEL_FILES:
        (folder / name).touch()


def test_newest_labeller_of_the_kind_is_found(tmp_path):
    write_run(tmp_path, 0, "train-labeller", models=[labeller("labeller-tfidf-1", "tfidf")])
    write_run(tmp_path, 1, "train-labeller", models=[labeller("labeller-tfidf-2", "tfidf")])
    write_run(tmp_path, 2, "import-model", models=[labeller("labeller-radbert-1", "radbert")])
    publish(tmp_path)
    for model_id in ("labeller-tfidf-2", "labeller-radbert-1"):
        write_folder(tmp_path, model_id)
    found = find_labeller(tmp_path, "tfidf")
    assert (found.labeller_id, found.folder) == ("labeller-tfidf-2", tmp_path.resolve() / "models/labeller-tfidf-2")
    assert find_labeller(tmp_path, "radbert").labeller_id == "labeller-radbert-1"


def test_absent_labeller_is_refused_with_what_to_run(tmp_path):
    publish(tmp_path)
    for name, command in (("tfidf", "ctclip label --labeller tfidf"), ("radbert", "ctclip fetch-models radbert")):
        with pytest.raises(MissingInputError, match=f"run `{command}`"):
            find_labeller(tmp_path, name)
    with pytest.raises(MissingInputError, match="there is no labeller 'other'"):
        find_labeller(tmp_path, "other")


@pytest.mark.parametrize("name", FOLDER_WEIGHTS)
def test_labeller_in_any_usual_file_is_found_and_named_by_the_hash_of_its_weights(tmp_path, name):
    publish(tmp_path / "data")
    found = []
    for content in (b"weights", b"weights", b"others"):
        folder = tmp_path / "radbert"
        folder.mkdir(exist_ok=True)
        (folder / "shard.bin").write_bytes(content)
        index = json.dumps({"weight_map": {"classifier.bias": "shard.bin"}}).encode()
        (folder / name).write_bytes(index if name.endswith(".json") else content)
        found.append(find_labeller(tmp_path / "data", str(folder)).labeller_id)
    assert found[0] == found[1] != found[2]
    assert found[0].startswith("radbert-")


@pytest.mark.usefixtures("prefect_server")
def test_labeller_that_a_killed_run_left_unpublished_is_found_by_the_next_stage(tmp_path):
    from flows.label import label

    publish(tmp_path)
    write_run(tmp_path, 0, "train-labeller", status=None, models=[labeller("labeller-tfidf-1", "tfidf")])
    write_folder(tmp_path, "labeller-tfidf-1")
    assert find_newest_labeller(tmp_path, "tfidf") is None
    assert label(tmp_path, "tfidf")["variant"] == "labeller-tfidf-1"
