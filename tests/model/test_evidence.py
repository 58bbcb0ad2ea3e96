"""Evidence: parts that add up to the score, overlays at the right place in any file, and a picture of both."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import TINY, load_tiny_model, make_tokenizer
from support.volumes import save_nifti

from ctclip_model.config import Recipe
from ctclip_model.data.label_sets import CT_RATE_18
from ctclip_model.errors import ConfigurationError
from ctclip_model.evaluation.embed import embed_prompts, embed_with_tokens
from ctclip_model.evaluation.evidence import split_scores
from ctclip_model.evaluation.evidence_files import choose_rows, folder_name
from ctclip_model.evaluation.evidence_picture import PLANES, Row, draw_evidence
from ctclip_model.evaluation.predict import VolumeModel, open_model
from ctclip_model.models.heads import LiPro
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import save_model_folder

RECIPE = Recipe("own", spacing_mm=(6.0, 7.0, 7.0), shape=(30, 40, 40))  # the golden model's size
KINDS = (ModelKind.ct_clip, ModelKind.vocabfine, ModelKind.lipro)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[ModelKind, Path]:
    """A model folder of each kind. The temperature is the highest that a preset allows, and prompts differ."""
    root = tmp_path_factory.mktemp("models")
    trunk = load_tiny_model()
    torch.manual_seed(0)
    for layer in trunk.text_transformer.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.5)
    torch.nn.init.constant_(trunk.temperature, 4.0)
    lipro = LiPro(TINY)
    lipro.trained_model.load_state_dict(trunk.state_dict())
    torch.nn.init.normal_(lipro.classifier.weight, std=5.0)
    torch.nn.init.normal_(lipro.classifier.bias)
    for kind in KINDS:
        has_head = kind is ModelKind.lipro
        tokenizer = None if has_head else make_tokenizer(TINY.text.vocab_size)
        extra = {"recipe": dataclasses.asdict(RECIPE)}
        save_model_folder(root / kind, lipro if has_head else trunk, tokenizer, kind=kind, extra=extra)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def volume(tmp_path) -> Path:
    voxels = np.random.default_rng(0).integers(-1000, 500, (44, 38, 27), dtype=np.int16)
    return save_nifti(tmp_path / "scan.nii.gz", voxels, (7.0, 7.0, 6.0))


def compute_scores(model: VolumeModel, latent: np.ndarray) -> np.ndarray:
    """Logits (18,) of a unit latent by the model's own layers."""
    loaded = model.loaded
    if loaded.head is not None:
        with torch.inference_mode():
            return loaded.head(torch.tensor(latent)).numpy()
    present, absent = embed_prompts(loaded.model, loaded.tokenizer, CT_RATE_18).transpose(1, 0, 2)
    return loaded.model.temperature.exp().item() * (present - absent) @ latent


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_the_score(folders, volume, tmp_path, kind):
    model = open_model(folders[kind])
    (read,) = model.predict([volume], evidence=tmp_path / "evidence")
    evidence = read.evidence.evidence
    assert evidence.parts.shape == (18, 6, 4, 4)
    assert np.ptp(evidence.scores) > 1  # or anything would add up
    assert evidence.scores == pytest.approx(compute_scores(model, read.latent), abs=1e-5)
    assert 1 / (1 + np.exp(-evidence.scores)) == pytest.approx(read.probabilities, abs=1e-5)
    assert np.any(evidence.constants) == (kind is ModelKind.lipro)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_the_loss_of_score_without_that_token(folders, kind):
    """Without a token, at the same norm and the same mask, the score loses the token's part."""
    model = open_model(folders[kind])
    encoder = model.loaded.model
    voxels = torch.rand(1, 1, *RECIPE.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, norms, tokens = embed_with_tokens(encoder, voxels)
    readout = model.read_scores(latents[0])
    evidence = split_scores(encoder, readout, tokens[0], norms[0])
    for patch in ((0, 0, 0), (5, 1, 3), (2, 3, 0)):
        without = tokens.clone()
        without[(0, *patch)] = 0
        with torch.inference_mode():
            lost = latents[0] - (encoder.project_image(encoder.pooling(without)) / norms)[0].numpy()
        assert evidence.parts[(slice(None), *patch)] == pytest.approx(readout.gradients @ lost, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_takes_one_forward_pass_and_changes_no_probability(folders, volume, tmp_path, kind):
    model = open_model(folders[kind])
    (plain,) = model.predict([volume])
    passes = []
    model.loaded.model.visual_transformer.register_forward_hook(lambda *_: passes.append(1))
    (read,) = model.predict([volume], evidence=tmp_path / "evidence")
    assert len(passes) == 1
    assert np.array_equal(read.probabilities, plain.probabilities)
    assert np.array_equal(read.latent, plain.latent)
    assert plain.evidence is None


def test_the_strongest_patch_is_the_largest_part_that_holds_a_voxel_of_the_ct(folders, tmp_path):
    """A CT of the two upper patches in depth is padded below and above, where no patch is chosen."""
    voxels = np.random.default_rng(0).integers(-1000, 500, (40, 40, 10), dtype=np.int16)
    path = save_nifti(tmp_path / "thin.nii.gz", voxels, (7.0, 7.0, 6.0))
    (read,) = open_model(folders[ModelKind.ct_clip]).predict([path], evidence=tmp_path / "evidence")
    for parts, strongest in zip(read.evidence.evidence.parts, read.evidence.strongest, strict=True):
        assert strongest.part == parts[2:4].max()
        first, second, third = strongest.voxel
        assert parts[2 + third // 5, first // 10, second // 10] == strongest.part


def test_volumes_of_one_name_get_folders_of_their_own(folders, volume, tmp_path):
    other = tmp_path / "other" / "scan.nii"
    other.parent.mkdir()
    voxels = np.random.default_rng(1).integers(-1000, 500, (30, 30, 20), dtype=np.int16)
    save_nifti(other, voxels, (9.0, 9.0, 9.0))
    out = tmp_path / "evidence" / "all"
    read = list(open_model(folders[ModelKind.ct_clip]).predict([volume, other], evidence=out))
    assert [item.evidence.folder for item in read] == [out / "scan", out / "scan-2"]
    for item in read:
        assert len(list(item.evidence.folder.glob("*.nii.gz"))) == 18
        assert item.evidence.picture.is_file()


def test_a_file_in_the_place_of_the_folder_is_refused(folders, volume):
    with pytest.raises(ConfigurationError, match="this is a file"):
        next(open_model(folders[ModelKind.lipro]).predict([volume], evidence=volume))


@pytest.mark.parametrize(
    ("name", "folder"),
    [("CHEST 1.5 B60 (2)", "CHEST_1.5_B60_2_"), ("a.NII.gz", "a"), ("../x.nii", "_x"), ("..", "volume"), ("ä\n", "ä_")],
)
def test_a_folder_name_has_no_separator_and_is_not_hidden(name, folder):
    assert folder_name(name) == folder


def test_the_present_abnormalities_are_pictured_or_the_most_probable_one():
    probabilities = np.full(18, 0.1)
    assert choose_rows(probabilities + np.eye(18)[7] * 0.2) == [7]
    probabilities[[3, 5, 9, 11]] = 0.6, 0.9, 0.8, 0.7
    assert choose_rows(probabilities) == [5, 9, 11]


@pytest.fixture
def picture() -> Image.Image:
    """A bright spot to the left, posterior and superior. The patch around it raises a score, its mirror lowers it."""
    volume = np.full((20, 40, 40), -1.0, np.float32)
    volume[14:16, 34:36, 24:26] = 1.0
    parts = np.zeros((5, 4, 4), np.float32)
    parts[3, 3, 2], parts[3, 0, 2] = 2.0, -1.0
    return draw_evidence(volume, (12.0, 4.0, 4.0), [Row("title", parts, (3, 3, 2))], "scan")


def read_pixel(picture: Image.Image, panel: int, across: float, down: float) -> np.ndarray:
    """Colour at a place, in shares of its width and height, in a panel of a field of 240 x 160 x 160 mm."""
    sizes = [(213, 213), (213, 320), (213, 320)]
    left = 16 + sum(width + 16 for width, _ in sizes[:panel])
    width, height = sizes[panel]
    return np.array(picture.getpixel((int(left + across * width), int(16 + 30 + 30 + down * height))), int)


def test_a_picture_shows_the_patch_on_the_side_that_radiologists_expect(picture):
    assert [plane.name for plane in PLANES] == ["axial", "coronal", "sagittal"]
    assert picture.size == (16 * 4 + 3 * 213, 16 + 30 + 30 + 22 + 320 + 40)
    bright, raising = (0.875, 0.625), (0.96, 0.55)
    for panel, (across, down) in enumerate((bright, (0.875, 0.25), (0.625, 0.25))):
        assert read_pixel(picture, panel, across, down).min() > 60  # the bright spot shines through
    red, _, blue = read_pixel(picture, 0, *raising)
    assert red > 100 > blue
    red, _, blue = read_pixel(picture, 0, 0.1, 0.55)
    assert blue > 60 > red
    assert read_pixel(picture, 0, 0.875, 0.1).max() < 10  # anterior, where the map is 0
    assert read_pixel(picture, 1, 0.875, 0.75).max() < 10  # inferior
