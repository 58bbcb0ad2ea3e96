"""A volume of one's own through a model: the same numbers as the pipeline's, and every way to name a model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.models import SLIM, load_tiny_model, make_model, make_tokenizer
from support.volumes import save_nifti

from ctclip_model.config import Recipe, tiny
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.label_sets import CT_RATE_18
from ctclip_model.data.volume import convert_volume, read_volume
from ctclip_model.errors import CheckpointError, ConfigurationError, MissingInputError, VolumeError
from ctclip_model.evaluation.embed import embed_prompts, embed_volumes
from ctclip_model.evaluation.predict import list_volumes, open_model
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.find_model import find_model, list_models, load_model
from ctclip_model.models.heads import LiPro
from ctclip_model.models.model_folder import load_model_folder, save_model_folder

RECIPE = Recipe("own", spacing_mm=(6.0, 7.0, 7.0), shape=(30, 40, 40))  # the golden model's size


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("models") / "golden"
    save_model_folder(folder, load_tiny_model(), tokenizer, extra={"recipe": dataclasses.asdict(RECIPE)})
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "CT-CLIP_slim.safetensors"
    save_file({key: value for key, value in make_model(SLIM).state_dict().items() if value.numel()}, path)
    return path


def save_volume(path: Path, *, shape=(40, 40, 30), spacing=(7.0, 7.0, 6.0), low=-1000, affine=None, seed=0) -> Path:
    voxels = np.random.default_rng(seed).integers(low, low + 1500, shape, dtype=np.int16)
    return save_nifti(path, voxels, spacing, affine=affine)


def doubts_of(path: Path) -> str:
    return "; ".join(read_volume(path, recipe=RECIPE).doubts)


def test_probabilities_are_those_of_the_pipeline(folder, tmp_path):
    """On the recipe's own grid HU stay integers, so that the pipeline's int16 loses nothing."""
    path = save_volume(tmp_path / "ct.nii.gz")
    (ours,) = open_model(folder).predict([path])
    loaded = load_model_folder(folder, CTCLIP)
    stored = torch.from_numpy(convert_volume(path, recipe=RECIPE).voxels)[None, None]
    ((_, latents),) = embed_volumes(loaded.model, [(["ct"], stored)])
    prompts = embed_prompts(loaded.model, loaded.tokenizer, CT_RATE_18)
    expected = zero_shot(latents, prompts, loaded.model.temperature.exp().item())
    assert ours.latent == pytest.approx(latents[0], abs=1e-6)
    assert ours.probabilities == pytest.approx(expected[0], abs=1e-5)
    assert list(ours.by_abnormality.items()) == list(zip(ABNORMALITIES, ours.probabilities.tolist(), strict=True))
    assert expected.shape == (1, 18)
    assert np.ptp(expected) > 1e-3  # or all would agree whatever was computed
    assert ours.spacing_mm == (7.0, 7.0, 6.0)
    assert ours.doubts == []


def test_a_bad_file_leaves_the_others_their_place(folder, tmp_path):
    paths = [tmp_path / "gone.nii.gz", save_volume(tmp_path / "a.nii.gz"), tmp_path / "text.nii"]
    paths[2].write_text("no volume")
    failed = []
    embedded = open_model(folder).embed(paths, on_error=lambda path, error: failed.append((path, error.reason)))
    assert [volume.path for volume in embedded] == [paths[1]]
    assert failed == [(paths[0], "missing_file"), (paths[2], "not_nifti")]


def test_bad_file_raises_without_a_handler_of_errors(folder, tmp_path):
    path = save_volume(tmp_path / "a.nii.gz")
    volumes = open_model(folder).predict([path, tmp_path / "gone.nii.gz"])
    assert next(volumes).path == path
    with pytest.raises(VolumeError, match="missing_file"):
        next(volumes)


def test_half_precision_changes_a_latent_a_little(folder, tmp_path):
    path = save_volume(tmp_path / "ct.nii.gz")
    (full,) = open_model(folder).embed([path])
    (half,) = open_model(folder, precision="bfloat16").embed([path])
    assert not np.array_equal(full.latent, half.latent)
    assert full.latent @ half.latent > 0.9


def test_folders_give_their_volumes_sorted_and_each_once(tmp_path):
    inside = tmp_path / "scans.nii.gz"  # a folder, whatever its name
    (inside / "deep.nii.gz").mkdir(parents=True)
    (inside / ".trash").mkdir()
    wanted = [inside / "a.NII", inside / "deep.nii.gz" / "b.nii.gz"]
    for path in (*wanted, inside / "._a.nii", inside / ".trash" / "old.nii.gz", inside / "notes.txt"):
        path.touch()
    (inside / "c.nii").symlink_to(inside / "nowhere")  # must be missed aloud, not left out
    assert list_volumes([wanted[1], inside]) == [wanted[1], wanted[0], inside / "c.nii"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="in this folder"):
        list_volumes([tmp_path / "empty"])


def test_doubts_name_what_the_header_may_have_wrong(tmp_path):
    assert doubts_of(save_volume(tmp_path / "fine.nii")) == ""
    assert "without a spacing" in doubts_of(save_volume(tmp_path / "blank.nii", spacing=(1.0, 1.0, 1.0)))
    assert "may not be HU" in doubts_of(save_volume(tmp_path / "airless.nii", low=300))
    assert "extent in doubt: 2 slices" in doubts_of(save_volume(tmp_path / "thin.nii", shape=(40, 40, 2)))
    assert "3 slices cover 18 mm" in doubts_of(save_volume(tmp_path / "short.nii", shape=(40, 40, 3)))
    image = nib.load(save_volume(tmp_path / "a.nii"))
    image.header["pixdim"][3] = 3.0
    nib.Nifti1Image(np.asarray(image.dataobj), None, image.header).to_filename(tmp_path / "other.nii")
    assert "used 7 x 7 x 3 mm" in doubts_of(tmp_path / "other.nii")


@pytest.mark.parametrize(
    ("spacing", "slices", "words"),
    [
        ((0.7, 0.7, 6.0), 30, "slices of 28 x 28 mm"),
        ((7.0, 7.0, 15.0), 200, "200 slices cover 3000 mm, more than a body"),
        ((7.0, 5.0, 6.0), 30, "pixels of 7 x 5 mm"),
    ],
)
def test_a_volume_of_no_body_s_size_is_doubted(tmp_path, spacing, slices, words):
    assert words in doubts_of(save_volume(tmp_path / "a.nii", shape=(40, 40, slices), spacing=spacing))


def test_blank_and_repeated_slices_are_doubted_and_many_blank_ones_are_refused_by_a_conversion(tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 500, (40, 40, 100), dtype=np.int16)
    voxels[:, :, [3, 50]] = voxels[:, :, [2, 49]]
    for blank, is_refused in ((0, False), (3, False), (4, True)):
        voxels[:, :, 60 : 60 + blank] = -1024
        path = save_nifti(tmp_path / f"{blank}.nii.gz", voxels, (7.0, 7.0, 3.0))
        repeated = "2 repeat the one before"
        expected = f"{blank} hold one value alone and {repeated}" if blank else repeated
        assert doubts_of(path) == f"slices in doubt: of 100 slices {expected}"
        if is_refused:
            with pytest.raises(VolumeError, match="4 hold one value alone") as caught:
                convert_volume(path, recipe=RECIPE)
            assert caught.value.reason == "missing_slices"
        else:
            converted = convert_volume(path, recipe=RECIPE)
            assert (converted.count_blank_slices, converted.count_repeated_slices) == (blank, 2)


@pytest.mark.parametrize("broken", [np.nan, 0.0])
def test_a_qform_stands_in_for_an_unusable_sform(tmp_path, broken):
    path = save_volume(tmp_path / "a.nii", affine=np.diag([7.0, 7.0, 6.0, 1.0]))
    block = bytearray(path.read_bytes())
    block[252:254] = (1).to_bytes(2, "little")
    block[280:328] = np.full(12, broken, "<f4").tobytes()
    path.write_bytes(block)
    volume = read_volume(path, recipe=RECIPE)
    assert (volume.turn, volume.doubts) == ("RAS → LPS", ())


def test_a_sform_that_contradicts_the_qform_is_doubted(tmp_path):
    path = save_volume(tmp_path / "a.nii", affine=np.diag([7.0, 7.0, 6.0, 1.0]))
    block = bytearray(path.read_bytes())
    block[252:254] = (1).to_bytes(2, "little")
    block[280:328] = np.diag([-7.0, -7.0, 6.0, 1.0])[:3].astype("<f4").tobytes()
    path.write_bytes(block)
    volume = read_volume(path, recipe=RECIPE)
    assert volume.turn == "as stored"
    assert volume.doubts == (
        "orientation in doubt: the header's sform says LPS and its qform RAS, and the sform is used",
    )


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPI", "SPL", "PIR", "ASR"])
def test_another_orientation_gives_the_same_volume_to_the_bit(folder, tmp_path, code):
    original = save_volume(tmp_path / "lps.nii.gz", spacing=(7.5, 6.8, 6.2))
    image = nib.load(original)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(code)
    )
    image.as_reoriented(turn).to_filename(tmp_path / "turned.nii.gz")
    turned = read_volume(tmp_path / "turned.nii.gz", recipe=RECIPE)
    assert np.array_equal(turned.voxels, read_volume(original, recipe=RECIPE).voxels)
    assert (turned.turn, turned.doubts) == (f"{code} → LPS", ())
    (ours,), (theirs,) = (open_model(folder).predict([tmp_path / name]) for name in ("turned.nii.gz", "lps.nii.gz"))
    assert np.array_equal(ours.probabilities, theirs.probabilities)
    assert (ours.turn, theirs.turn) == (f"{code} → LPS", "as stored")


def test_an_orientation_that_is_given_overrides_the_header(tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 500, (40, 40, 30), dtype=np.int16)
    path = save_nifti(tmp_path / "wrong.nii.gz", voxels, (7.0, 7.0, 6.0), affine=np.diag([7.0, 7.0, 6.0, 1.0]))
    lying = read_volume(path, recipe=RECIPE, orientation="LPS")
    assert lying.turn == "as stored"
    assert np.array_equal(lying.voxels, read_volume(path, recipe=RECIPE, orientation="stored").voxels)
    assert np.array_equal(lying.voxels, convert_volume(path, recipe=RECIPE).voxels)
    assert not np.array_equal(lying.voxels, read_volume(path, recipe=RECIPE).voxels)


def test_a_header_without_an_orientation_is_doubted(tmp_path):
    image = nib.load(save_volume(tmp_path / "a.nii"))
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.Nifti1Image(np.asarray(image.dataobj), None, image.header).to_filename(tmp_path / "uncoded.nii")
    assert "the header states none" in doubts_of(tmp_path / "uncoded.nii")


def test_the_recipe_travels_with_the_model_folder(folder, tokenizer, tmp_path):
    assert load_model(folder).recipe == RECIPE
    model = make_model(tiny().model)
    save_model_folder(tmp_path / "older", model, tokenizer, extra={"preset": "tiny"})
    assert load_model(tmp_path / "older").recipe == tiny().recipe
    save_model_folder(tmp_path / "unknown", model, tokenizer, extra={"preset": "mine"})
    with pytest.raises(CheckpointError, match="neither a recipe nor a preset"):
        load_model(tmp_path / "unknown")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [30, 40, 48]}, "makes volumes of 30 x 40 x 48 voxels, and the model takes 30 x 40 x 40"),
        ({"spacing_mm": [0, 1, 1]}, "no usable recipe"),
        ({"pace_mm": 3}, "no usable recipe"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(folder, tmp_path, change, message):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    description = json.loads((copy / "config.json").read_text())
    description["info"]["recipe"] |= change
    (copy / "config.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=message):
        load_model(copy)


def test_a_model_is_found_by_its_name_its_path_or_as_the_only_one(folder, tmp_path):
    models = tmp_path / "models"
    with pytest.raises(MissingInputError, match="ctclip train"):
        find_model(models, None)
    shutil.copytree(folder, models / "one")
    (models / "labeller").mkdir()
    (models / "labeller" / "config.json").write_text('{"kind": "labeller"}')
    assert find_model(models, None) == find_model(models, "one") == models / "one"
    assert find_model(models, str(folder)) == folder
    assert find_model(models, str(folder / "model.safetensors")) == folder
    shutil.copytree(folder, models / "two")
    os.utime(models / "one" / "config.json", (0, 0))
    assert [path.name for path in list_models(models)] == ["two", "one"]
    with pytest.raises(ConfigurationError, match="2 models, newest first: two, one"):
        find_model(models, None)
    with pytest.raises(MissingInputError, match="there is no model 'three'"):
        find_model(models, "three")


def test_weights_alone_are_of_the_published_recipe_and_embed_without_a_tokenizer(weights):
    loaded = load_model(weights, with_text=False)
    assert loaded.name == "CT-CLIP_slim"
    assert loaded.recipe == Recipe()
    assert loaded.tokenizer is None


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_weights_alone_take_the_tokenizer_beside_them_or_the_one_named(weights, tokenizer, tmp_path, name):
    if name == "vocab.txt":
        by_place = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        (tmp_path / name).write_text("\n".join(word for word, _ in by_place))
    else:
        tokenizer.backend_tokenizer.save(str(tmp_path / name))
    text = ["Hiatal hernia is not present."]
    for tokens in (tmp_path, tmp_path / name):
        assert load_model(weights, tokenizer=tokens).tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    beside = Path(shutil.copy(weights, tmp_path))
    assert load_model(beside).tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_folder_of_hugging_face_is_taken_like_its_weights(weights, tokenizer, tmp_path):
    folder = tmp_path / "hugging-face"
    folder.mkdir()
    shutil.copy(weights, folder / "model.safetensors")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "ct_clip", "torch_dtype": "float32"}))
    loaded = load_model(find_model(tmp_path, "hugging-face"))
    assert loaded.name == "hugging-face"
    torch.testing.assert_close(loaded.model.state_dict(), load_model(weights, with_text=False).model.state_dict())
    assert len(loaded.tokenizer) == len(tokenizer)


def test_a_tokenizer_that_is_not_the_models_is_refused(weights, folder, tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("\n".join([*special, *(f"word{number}" for number in range(200))]))
    with pytest.raises(CheckpointError, match="knows 120 tokens, and the tokenizer has 205"):
        load_model(weights, tokenizer=vocabulary)
    vocabulary.write_text("lung\nnodule")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        load_model(weights, tokenizer=vocabulary)
    with pytest.raises(MissingInputError, match=r"no tokenizer\.json and no vocab\.txt"):
        load_model(weights, tokenizer=folder.parent)
    with pytest.raises(ConfigurationError, match="a tokenizer of its own"):
        load_model(folder, tokenizer=vocabulary)


@pytest.fixture(scope="module")
def lipro() -> LiPro:
    torch.manual_seed(1)
    model = LiPro(SLIM)
    torch.nn.init.normal_(model.classifier.weight)
    return model.eval()


def test_a_lipro_file_answers_by_its_head_and_asks_for_no_tokenizer(tmp_path, lipro):
    weights = {key: value for key, value in lipro.state_dict().items() if value.numel()}
    save_file(weights, tmp_path / "CT_LiPro_slim.safetensors")
    model = open_model(tmp_path / "CT_LiPro_slim.safetensors")
    latents = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    with torch.inference_mode():
        expected = lipro.classifier(torch.from_numpy(latents)).sigmoid().numpy()
    assert model.head(latents) == pytest.approx(expected, abs=1e-6)


def test_fine_tuned_models_are_taken_by_name_alone(tmp_path, folder, lipro, tokenizer):
    shutil.copytree(folder, tmp_path / "golden")
    info = {"recipe": dataclasses.asdict(RECIPE), "parent": "golden"}
    save_model_folder(tmp_path / "tuned", lipro, tokenizer, extra=info)
    assert find_model(tmp_path, None) == tmp_path / "golden"
    assert find_model(tmp_path, "tuned") == tmp_path / "tuned"
    shutil.rmtree(tmp_path / "golden")
    assert find_model(tmp_path, None) == tmp_path / "tuned"
