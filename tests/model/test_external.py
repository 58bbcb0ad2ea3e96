"""Encoders of other packages: found by entry point, held to what they promise, and one line for every fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from support.encoders import PACKAGE, SOURCE, install_encoders, remove_encoders
from support.paths import ROOT

from ctclip_model import digest_weights, open_model
from ctclip_model.config import Recipe
from ctclip_model.errors import CheckpointError, ConfigurationError, EncoderError, MissingInputError
from ctclip_model.evaluation.embed import count_at_once, embed_texts, embed_volumes
from ctclip_model.models.entry_points import find_entry_point, list_encoders
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.heads import LiPro
from ctclip_model.models.import_weights import open_encoder, write_candidate
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import load_model_folder, save_model_folder

VOLUMES = torch.linspace(-1000, 400, 2 * 20**3).reshape(2, 1, 20, 20, 20)  # HU


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of an installed package with the encoders boxes, boxes-and-texts and broken."""
    install_encoders(tmp_path / "package", monkeypatch)
    return tmp_path / "package"


def make(name: str = "boxes", **options: Any) -> ExternalModel:
    model = open_encoder(name, options).model
    assert isinstance(model, ExternalModel)
    return model


def save(folder: Path, name: str = "boxes", **options: Any) -> Path:
    write_candidate(open_encoder(name, options), folder, {})
    return folder


def save_probe(folder: Path, model: ExternalModel) -> Path:
    probe = LiPro(model.config)
    torch.nn.init.normal_(probe.classifier.weight)
    save_model_folder(folder, probe, None, extra={"recipe": vars(model.config.recipe)})
    return folder


def write_scan(folder: Path) -> Path:
    voxels = np.random.default_rng(0).integers(-1000, 500, (20, 20, 20), dtype=np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([14.0, 14.0, 14.0, 1.0])), folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def test_an_encoder_is_given_hu_and_its_latents_have_length_1(package):
    model = make(width=7)
    stored = model.encode_image(VOLUMES.short())  # as in shards
    loaded = model.encode_image(VOLUMES.short() / 1000)  # as `load_volume` gives them
    expected = model.open().encode_image(VOLUMES.short().float()).detach()
    torch.testing.assert_close(stored, torch.nn.functional.normalize(expected))
    torch.testing.assert_close(loaded, stored)
    assert stored.shape == (2, 7)
    assert not stored.requires_grad
    assert count_at_once(model, torch.device("cpu")) == 3


def test_installed_encoders_are_listed_without_an_import_of_them(package):
    code = (
        "import sys; from ctclip_model.models.entry_points import list_encoders; print(list_encoders());"
        "assert not {'torch', 'made_up_encoders'} & sys.modules.keys()"
    )
    path = f"{ROOT}:{package}"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, check=True)
    assert done.stdout.decode().strip() == str(list_encoders())
    assert list_encoders() == dict.fromkeys(("boxes", "boxes-and-texts", "broken"), f"{PACKAGE} 1.2")


def test_a_model_folder_has_a_configuration_and_no_weights(package, tmp_path):
    folder = save(tmp_path / "model", width=5)
    loaded = load_model_folder(folder)
    assert (loaded.kind, loaded.config) == (ModelKind.external, make(width=5).config)
    assert loaded.config.recipe == Recipe("boxes", (14.0, 14.0, 14.0), (20, 20, 20), (-1000, 400))
    assert not loaded.model.state_dict()


def test_changed_options_are_another_weights_file(package, tmp_path):
    first, again, other = (save(tmp_path / name, width=width) for name, width in (("a", 5), ("b", 5), ("c", 6)))
    hashes = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    description = json.loads((first / "config.json").read_text())
    description["config"]["options"]["width"] = 6
    (first / "config.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"stands for another encoder than config\.json"):
        load_model_folder(first)


def test_a_model_of_other_weights_is_refused_until_it_is_imported_again(package, tmp_path, monkeypatch):
    folder = save(tmp_path / "model")
    remove_encoders(package, monkeypatch)
    install_encoders(tmp_path / "new", monkeypatch, source=SOURCE.replace("manual_seed(seed)", "manual_seed(seed + 1)"))
    with pytest.raises(EncoderError, match=r"not the one that the model was made of \(digest .* → .*import-model"):
        open_model(folder)


def test_a_new_version_of_the_package_is_the_same_model_if_its_digest_is(package, tmp_path, monkeypatch):
    fixed = SOURCE.replace("    batch_size = 3\n", "    batch_size, digest = 3, 'weights-7'\n")
    remove_encoders(package, monkeypatch)
    install_encoders(tmp_path / "fixed", monkeypatch, source=fixed)
    folder, identity = save(tmp_path / "model"), make().config.identity
    remove_encoders(tmp_path / "fixed", monkeypatch)
    install_encoders(tmp_path / "newer", monkeypatch, source=fixed, version="2.0")
    assert open_model(folder).recipe.name == "boxes"
    assert (make().config.version, make().config.identity) == ("2.0", identity)


def test_a_package_that_is_not_installed_is_named(package, tmp_path, monkeypatch):
    folder = save(tmp_path / "model")
    remove_encoders(package, monkeypatch)
    with pytest.raises(MissingInputError, match=f"'boxes' is not installed: .*pip install {PACKAGE}$"):
        open_model(folder)
    with pytest.raises(MissingInputError, match=r"no installed package declares the encoder boxes \(.*: none\)"):
        open_encoder("boxes", {})
    install_encoders(tmp_path / "renamed", monkeypatch, package="new-name")
    with pytest.raises(MissingInputError, match=r"\. If new-name is its new name, import the encoder again$"):
        open_model(folder)


def test_a_folder_runs_nothing_except_an_entry_point_of_the_package_that_it_names(package, tmp_path, monkeypatch):
    folder = save(tmp_path / "model")
    for field, value, fault in (
        ("encoder", "os:system", "is no name of an encoder"),
        ("encoder", "made_up_encoders.MeanHU", "is no name of|stands for another"),
        ("package", "--index-url=http://evil", "is no name of an encoder or package"),
        ("package", "another-package", "stands for another encoder"),
    ):
        description = json.loads((folder / "config.json").read_text())
        description["config"][field] = value
        (tmp_path / "forged").mkdir(exist_ok=True)
        (tmp_path / "forged" / "config.json").write_text(json.dumps(description))
        (tmp_path / "forged" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(CheckpointError, match=fault):
            open_model(tmp_path / "forged")
    with pytest.raises(MissingInputError, match="pip install another-package"):
        find_entry_point("boxes", "another-package")


def test_two_packages_of_one_name_are_told_apart_by_the_package(package, tmp_path, monkeypatch):
    config = make().config
    install_encoders(tmp_path / "other", monkeypatch, package="other-encoders")
    with pytest.raises(EncoderError, match="declared by made-up-encoders and other-encoders: uninstall"):
        open_encoder("boxes", {})
    assert ExternalModel(config).encode_image(VOLUMES).shape == (2, 12)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"fault": "init"}, r"refuses fault='init': FileNotFoundError: weights\.pt is missing$"),
        ({"latent_dim": "4"}, "its latent_dim is '4', not a whole number"),
        ({"latent_dim": True, "recipe": {}}, "its recipe is {}, not a ctclip_model.Recipe; its latent_dim is True"),
        ({"batch_size": 0}, "its batch_size is 0"),
        ({"digest": 7}, "its digest is 7, not a text"),
        ({"encode_image": None}, "its encode_image is None, not a method"),
        ({"recipe": Recipe(shape=(20.0, 20, 20))}, r"its recipe\.shape\[0\] is 20\.0, not a whole number"),
        ({"positional": 1, "problem": 2, "function": 3}, None),  # names of our own arguments
    ],
)
def test_an_encoder_that_breaks_its_promise_is_refused_in_one_line(package, options, fault):
    if fault is None:
        make("broken", **options)
        return
    with pytest.raises(EncoderError, match=fault) as caught:
        make("broken", **options)
    assert "the encoder 'broken' of made-up-encoders 1.2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_and_a_package_that_fails_at_import_are_one_line(package, tmp_path, monkeypatch):
    with pytest.raises(EncoderError, match=r"refuses widht=3: TypeError: .*widht"):
        make(widht=3)
    for name, source, fault in (
        ("failing", "raise OSError('no CUDA')", "cannot be imported: OSError: no CUDA"),
        ("exiting", "raise SystemExit", "cannot be imported: SystemExit$"),
        ("empty", "", "cannot be imported: AttributeError: .*MeanHU"),
    ):
        package_name = f"{name}-package"
        install_encoders(tmp_path / name, monkeypatch, package=package_name, source=source, encoders={name: "MeanHU"})
        with pytest.raises(EncoderError, match=f"the encoder '{name}' of {package_name} 1.2 {fault}"):
            open_encoder(name, {})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", "fails on volumes .*: RuntimeError: no kernel for this device$"),
        ("exits", "fails on volumes .*: SystemExit: 3$"),
        ("width", r"returns \(2, 5\) for volumes .*, not \(2, 4\)$"),
        ("count", r"returns \(3, 4\) for volumes \(2, 1, 20, 20, 20\), not \(2, 4\)$"),
        ("list", "returns list for volumes .*, not a Tensor$"),
        ("integers", "returns torch.int64 for .*, not floating-point numbers$"),
    ],
)
def test_latents_of_another_form_are_refused_by_name(package, fault, words):
    with pytest.raises(EncoderError, match=f"the encoder 'broken' of made-up-encoders {words}"):
        make("broken", fault=fault).encode_image(VOLUMES)


@pytest.mark.parametrize("fault", ["half", "grad"])
def test_latents_of_half_precision_or_with_gradients_are_plain_numbers(package, fault):
    ((_, latents),) = embed_volumes(make("broken", fault=fault), [(["a", "b"], VOLUMES)])
    assert (latents.dtype, latents.tolist()) == (np.float32, [[0.5] * 4] * 2)


@pytest.mark.parametrize(("fault", "words"), [("nan", "is not finite"), ("zero", "is zero")])
def test_a_latent_without_a_direction_is_refused(package, tmp_path, fault, words):
    model = open_model(save(tmp_path / "model", "broken", fault=fault))
    with pytest.raises(CheckpointError, match=f"^model: its latent of .* {words}"):
        list(model.embed([write_scan(tmp_path)]))


def test_prints_of_a_package_stay_off_standard_output(tmp_path, monkeypatch, capsys):
    printing = SOURCE.replace("boxes = torch", "print('volumes'); boxes = torch")
    install_encoders(tmp_path / "package", monkeypatch, source=f"print('hello')\n{printing}")
    make().encode_image(VOLUMES)
    assert capsys.readouterr() == ("", "hello\nvolumes\n")


def test_a_recipe_of_lists_is_that_of_tuples(tmp_path, monkeypatch):
    lists = SOURCE.replace("(14.0, 14.0, 14.0)", "[14.0, 14.0, 14.0]").replace("(-1000, 400)", "[-1000, 400]")
    assert lists.count("[14.0, 14.0, 14.0]") == 2
    install_encoders(tmp_path / "package", monkeypatch, source=lists)
    assert open_model(save(tmp_path / "model")).recipe.spacing_mm == (14.0, 14.0, 14.0)


@pytest.mark.parametrize(
    ("name", "member", "fault"),
    [
        ("boxes", "def train(self, mode=True): self.is_training = mode", None),  # so eval() returns None
        ("boxes", "batch_size = property(lambda self: 1 // 0)", "breaks its promise: ZeroDivisionError"),
        ("two words", "", "breaks its promise: ValueError: 'two words' is no name of an encoder"),
    ],
)
def test_an_encoder_whose_members_fail_is_refused_in_one_line(tmp_path, monkeypatch, name, member, fault):
    source = f"{SOURCE}\n\nclass Odd(MeanHU):\n    {member or 'pass'}\n"
    install_encoders(tmp_path / "package", monkeypatch, source=source, encoders={name: "Odd"})
    if fault is None:
        assert make(name).encode_image(VOLUMES).shape == (2, 12)
        return
    with pytest.raises(EncoderError, match=f"the encoder '{name}' of {PACKAGE} 1.2 {fault}"):
        make(name)


def test_an_encoder_without_a_text_side_embeds_and_predicts_by_a_probe_alone(package, tmp_path):
    scan = write_scan(tmp_path)
    model = open_model(save(tmp_path / "model"))
    (embedded,) = model.embed([scan])
    assert embedded.latent.shape == (12,)
    with pytest.raises(ConfigurationError, match="no text side: predict with a LiPro of it"):
        next(model.predict([scan]))
    probe = open_model(save_probe(tmp_path / "probe", make()))
    (predicted,) = probe.predict([scan])
    assert np.array_equal(predicted.latent, embedded.latent)
    assert len(predicted.by_abnormality) == 18
    with pytest.raises(ConfigurationError, match="leave --evidence and --page out"):
        next(probe.predict([scan], evidence=tmp_path / "evidence"))
    assert not (tmp_path / "evidence").exists()


def test_a_text_side_predicts_by_prompts(package, tmp_path):
    model = open_model(save(tmp_path / "model", "boxes-and-texts"))
    (predicted,) = model.predict([write_scan(tmp_path)])
    assert predicted.probabilities.shape == (18,)
    texts = [f"Text number {number}." for number in range(70)]
    latents = embed_texts(model.loaded.model, None, texts)
    np.testing.assert_allclose(np.linalg.norm(latents, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(latents[40], embed_texts(model.loaded.model, None, texts[40:41])[0])


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), "high", None])
def test_a_text_side_needs_a_positive_scale(tmp_path, monkeypatch, scale):
    install_encoders(
        tmp_path,
        monkeypatch,
        source=SOURCE.replace("= 10.0", f"= float('{scale}')" if scale != scale else f"= {scale!r}"),
    )
    with pytest.raises(EncoderError, match=r"its logit_scale is .*, not a positive number"):
        make("boxes-and-texts")


def test_digest_of_weights_moves_with_names_values_and_types():
    layer = torch.nn.Linear(3, 2)
    others = [torch.nn.Linear(3, 2), torch.nn.Sequential(layer), torch.nn.Linear(3, 2).half()]
    assert len({digest_weights(module) for module in (layer, *others)}) == 4
    assert digest_weights(layer) == digest_weights(layer)


def test_a_configuration_of_an_encoder_that_is_no_model_here_is_refused(package, tmp_path):
    folder = save(tmp_path / "model")
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(description | {"kind": "ct-clip"}))
    with pytest.raises(CheckpointError, match="is not a model folder"):
        load_model_folder(folder)
