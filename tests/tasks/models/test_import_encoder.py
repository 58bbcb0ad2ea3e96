"""Model folders of encoders of other packages, as `import-model`, `push` and `doctor` take them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.command_line import run_ctclip
from support.encoders import install_encoders, remove_encoders
from support.hub import LoopbackHub

from ctclip_model import open_model
from ctclip_model.config import ExternalConfig
from ctclip_model.errors import ConfigurationError
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.heads import LiPro
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import save_model_folder
from tasks.models.import_model import ImportOptions, import_encoder, import_model
from tasks.models.push_model import _refuse_paths
from tasks.upkeep.doctor import check_encoders
from tasks.upkeep.verify import _name_training
from warehouse import store


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install_encoders(tmp_path / "package", monkeypatch)
    return tmp_path / "package"


def save_probe(data_root: Path, encoder_id: str, **options: object) -> Path:
    model = open_model(data_root / "models" / encoder_id).loaded.model
    assert isinstance(model, ExternalModel)
    probe = LiPro(model.config)
    torch.nn.init.normal_(probe.classifier.weight)
    folder = data_root / "models" / "probe"
    save_model_folder(folder, probe, None, extra={"recipe": vars(model.config.recipe)})
    return folder


def test_an_encoder_is_imported_once_and_again_with_other_options(tmp_path):
    first, again, other = (import_encoder(tmp_path, "boxes", {"width": width}) for width in (5, 5, 6))
    assert (first.kind, first.is_new, again.is_new, other.is_new) == (ModelKind.external, True, False, True)
    assert first.model_id == again.model_id != other.model_id
    assert first.model_id.startswith("external-boxes-")
    forced = import_encoder(tmp_path, "boxes", {"width": 5}, ImportOptions(force=True))
    assert (forced.model_id, forced.is_new) == (first.model_id, True)
    columns = "model_id, kind, preset, recipe_id, logit_scale, source, count_parameters"
    rows = {row[0]: row[1:] for row in store.query(tmp_path, f"select {columns} from current_models")}
    assert rows.keys() == {first.model_id, other.model_id}
    assert first.recipe is not None
    recipe_id = first.recipe.recipe_id
    assert rows[first.model_id] == ("external", "external-boxes", recipe_id, None, "encoder:boxes", 0)


def test_a_lost_folder_says_how_to_make_it_again():
    assert _name_training("external", "external-boxes", None, "encoder:boxes") == (
        "run `ctclip import-model --encoder boxes` with its options"
    )


def test_a_folder_from_elsewhere_is_the_same_model_and_needs_no_package(tmp_path, package, monkeypatch):
    made = import_encoder(tmp_path / "there", "boxes", {"width": 5})
    probe = save_probe(tmp_path / "there", made.model_id)
    remove_encoders(package, monkeypatch)
    found = import_model(tmp_path / "here", str(tmp_path / "there" / "models" / made.model_id))
    assert (found.model_id, found.is_new) == (made.model_id, True)
    head = import_model(tmp_path / "here", str(probe))
    assert (head.kind, head.is_new) == (ModelKind.lipro, True)


def test_a_recipe_that_cannot_be_converted_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"'boxes' has a recipe that cannot be converted: shape is \(9999, "):
        import_encoder(tmp_path, "boxes", {"size": 9999})
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((), "either a weights file or model folder, or --encoder NAME"),
        (("weights.pt", "--encoder", "boxes"), "either a weights file or model folder, or --encoder NAME"),
        (("weights.pt", "--option", "a=1"), "add --encoder NAME"),
        (("--encoder", "boxes", "--preset", "tiny"), "goes with --option and --force alone"),
        (("--encoder", "boxes", "--option", "width"), "--option width: is not KEY=VALUE"),
        (("--encoder", "boxes", "--option", "a=1", "--option", "a=2"), "repeats a key"),
        (("--encoder", "boxes", "--option", "width=many"), "refuses width='many': TypeError"),
        (("--encoder", "boxes", "--option", "width=NaN"), "refuses width='NaN': TypeError"),
        (("--encoder", "../boxes"), "declares the encoder '../boxes'"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, arguments, fault):
    done = run_ctclip("import-model", *arguments, "--data-root", tmp_path / "data")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert fault in done.stderr


def test_the_commands_that_follow_are_printed(tmp_path):
    done = run_ctclip("import-model", "--encoder", "boxes", "--data-root", tmp_path / "data")
    assert "20 x 20 x 20 voxels of 14 x 14 x 14 mm (depth x height x width), -1000 to 400 HU" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if "ctclip convert" in line)
    recipe = json.loads(line.partition("--recipe '")[2].rstrip("'"))
    assert recipe == {"name": "boxes", "spacing_mm": [14.0] * 3, "shape": [20] * 3, "window_hu": [-1000, 400]}


def test_a_probe_is_pushed_and_opens_from_the_hub_where_the_package_is(
    tmp_path, hub: LoopbackHub, package, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    made = import_encoder(tmp_path, "boxes", {"width": 5})
    save_probe(tmp_path, made.model_id)
    done = run_ctclip("push", "probe", "--to", "someone/probe", "--data-root", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(open_model("hf://someone/probe").label_set) == 18
    repository = hub.repositories["models", "someone/probe"]
    commit = repository.commits[repository.branches["main"]]
    card = (hub.store / commit["README.md"].sha256).read_text()
    assert "pip install ctclip-rebuild made-up-encoders" in card
    assert "evidence" not in card.lower()
    remove_encoders(package, monkeypatch)
    done = run_ctclip("predict", "scan.nii.gz", "--model", "hf://someone/probe", "--data-root", tmp_path)
    assert "ctclip: the encoder 'boxes' is not installed" in done.stderr


def test_an_encoder_alone_and_paths_of_this_machine_are_not_pushed(tmp_path, hub):
    alone = import_encoder(tmp_path, "boxes")
    done = run_ctclip("push", alone.model_id, "--to", "someone/boxes", "--data-root", tmp_path)
    assert "has no weights of its own: share the package made-up-encoders" in done.stderr
    made = import_encoder(tmp_path, "broken", {"weights": "/home/me/weights.pt"})
    save_probe(tmp_path, made.model_id)
    done = run_ctclip("push", "probe", "--to", "someone/probe", "--data-root", tmp_path)
    assert (done.returncode, "/home/me/weights.pt, a path of this machine" in done.stderr) == (1, True)


@pytest.mark.parametrize("value", ["~/w.pt", ["a", {"b": "/home/me/w.pt"}], "beside.pt"])
def test_every_form_of_a_path_of_this_machine_is_found(value, tmp_path, monkeypatch):
    (tmp_path / "beside.pt").touch()
    monkeypatch.chdir(tmp_path)
    config = import_config(tmp_path, {"weights": value})
    with pytest.raises(ConfigurationError, match="a path of this machine"):
        _refuse_paths("probe", config)
    _refuse_paths("probe", import_config(tmp_path, {"weights": ["resnet10", 3, None]}))


def import_config(data_root: Path, options: dict[str, object]) -> ExternalConfig:
    made = import_encoder(data_root, "broken", options)
    config = open_model(data_root / "models" / made.model_id).loaded.model.config
    assert isinstance(config, ExternalConfig)
    return config


def test_doctor_names_an_encoder_that_two_packages_declare(tmp_path, monkeypatch):
    install_encoders(tmp_path / "other", monkeypatch, package="other-encoders")
    found = {one.text.partition(":")[0]: one.is_bad for one in check_encoders()}
    assert found["the encoder 'boxes' is declared by made-up-encoders and other-encoders"]


def test_doctor_lists_the_installed_encoders(package, monkeypatch):
    (found,) = check_encoders()
    assert (found.is_bad, "boxes of made-up-encoders 1.2" in found.text) == (False, True)
    remove_encoders(package, monkeypatch)
    assert not [one for one in check_encoders() if "made-up" in one.text]
