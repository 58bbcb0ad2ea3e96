"""A volume rescaled twice or not at all is found out, and no true CT is, whatever its padding."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bench_value_check import DAMAGES
from support.volumes import load_golden_volume

from ctclip_model.config import Recipe
from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.data.value_check import judge_values
from ctclip_model.data.volume import convert_volume
from ctclip_model.errors import VolumeError

SMALL = Recipe("small", spacing_mm=(6.0, 6.0, 6.0), shape=(20, 40, 40))
PARTS = {  # kinds of scans: HU, noise and share of each tissue
    "chest": ((-1000, 15, 0.35), (-860, 50, 0.25), (-100, 20, 0.15), (45, 25, 0.22), (600, 300, 0.03)),
    "head": ((-1000, 8, 0.6), (-90, 20, 0.05), (35, 6, 0.25), (1000, 400, 0.1)),
    "contrast": ((-1000, 15, 0.3), (-800, 60, 0.25), (-100, 20, 0.15), (120, 150, 0.2), (900, 200, 0.1)),
    "zoomed": ((-870, 60, 0.7), (40, 30, 0.3)),  # no air around the body
    "emphysema": ((-990, 20, 0.85), (-100, 20, 0.1), (40, 20, 0.05)),
}
PADDING = [None, -1000, -1024, -2000, -2048, -3024, -8192]


def hu_of(name: str, padding: int | None = None, share: float = 0.21) -> np.ndarray:
    rng = np.random.default_rng(0)
    parts = [rng.normal(hu, noise, int(part * 50_000)) for hu, noise, part in PARTS[name]]
    values = np.maximum(np.rint(np.concatenate(parts)), -1024)
    pads = [] if padding is None else np.full(int(share * values.size), padding)
    return np.concatenate([values, pads])


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", PARTS)
def test_a_true_ct_passes_and_its_mistaken_twins_do_not(name, padding):
    hu = hu_of(name, padding)
    assert judge_values(hu) is None
    for intercept in (-1000, -1024, -8192):
        for shift, expected in ((intercept, "rescaled_twice"), (-intercept, "not_rescaled")):
            found = judge_values(hu + shift)
            assert found is not None, (shift, name)
            assert found.reason == expected


def test_two_kinds_of_padding_pass():
    hu = hu_of("chest", -2048, share=0.3)
    hu[:100] = -3024
    assert judge_values(hu) is None


def test_bone_without_air_does_not_pass_for_tissue():
    rng = np.random.default_rng(0)
    skull = np.concatenate([rng.normal(35, 6, 8_500), rng.normal(1000, 250, 1_500), [-1024] * 3_000])
    assert judge_values(skull) is None


def test_a_few_voxels_prove_nothing():
    assert judge_values(np.array([5.0, 7.0])) is None
    assert judge_values(np.array([-1000.0] * 9 + [0.0])) is None


@pytest.mark.parametrize("padding", [None, -1024, -2048, -8192])
@pytest.mark.parametrize("damage", DAMAGES)
def test_values_that_are_not_hu_are_found_with_evidence(damage, padding):
    fault = judge_values(DAMAGES[damage](hu_of("chest", padding)))
    assert fault is not None
    assert fault.reason in ("not_hu", "not_rescaled", "rescaled_twice")
    assert any(character.isdigit() for character in fault.evidence)


def test_a_small_body_with_padding_off_by_one_passes():
    rng = np.random.default_rng(0)
    padding = rng.integers(-2001, -1998, 45_000)
    assert judge_values(np.concatenate([padding, hu_of("chest")[::10]])) is None


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, PhantomConfig(seed=3, train_patients=10, valid_patients=10), processes=1)
    return sorted(folder.glob("dataset/*_fixed/*/*/*.nii.gz"))


def test_every_phantom_passes_and_its_mistaken_twins_do_not(phantoms):
    assert len(phantoms) > 20
    for path in phantoms:
        assert convert_volume(path, recipe=SMALL).rescale_intercept == 0.0
        for intercept, expected in ((-1024.0, "rescaled_twice"), (1024.0, "not_rescaled"), (8192.0, "not_rescaled")):
            with pytest.raises(VolumeError, match="of the voxels look like air") as caught:
                convert_volume(path, intercept=intercept, recipe=SMALL)
            assert caught.value.reason == expected


@pytest.mark.parametrize("name", ["train_1_a_1", "train_2_a_1", "train_3_a_1", "valid_1_a_1", "valid_2_b_2"])
def test_golden_volumes_pass_with_their_rescaling_recorded(name):
    path, options, _ = load_golden_volume(name)
    converted = convert_volume(path, **options, recipe=SMALL)
    assert (converted.rescale_slope, converted.rescale_intercept) == (options["slope"], options["intercept"])


def test_a_real_crop_rescaled_twice_is_refused():
    path, options, _ = load_golden_volume("train_1_a_1")
    for intercept, expected in ((-1024.0, "rescaled_twice"), (1024.0, "not_rescaled")):
        with pytest.raises(VolumeError) as caught:
            convert_volume(path, **(options | {"intercept": intercept}), recipe=SMALL)
        assert caught.value.reason == expected


def test_the_headers_own_scaling_is_checked_too(tmp_path):
    hu = hu_of("chest", -2048).astype(np.int16)[:60_000].reshape(50, 40, 30)
    image = nib.Nifti1Image(hu, np.diag([3.0, 3.0, 3.0, 1.0]))
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(VolumeError) as caught:
        convert_volume(tmp_path / "a.nii.gz", intercept=-1024.0, recipe=SMALL)
    assert caught.value.reason == "rescaled_twice"
