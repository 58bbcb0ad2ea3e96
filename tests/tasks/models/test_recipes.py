"""Custom recipes: JSON over a preset's recipe, refused with one clear line if a value is impossible."""

import json

import pytest

from ctclip_model.errors import ConfigurationError
from tasks.models.presets import find_preset
from tasks.models.recipes import find_recipe


def test_the_presets_recipe_stands_without_changes():
    assert find_recipe("tiny") == find_preset("tiny").recipe


def test_a_recipe_changes_what_it_names_and_is_kept_apart(tmp_path):
    text = json.dumps({"name": "fine", "spacing_mm": [1, 0.5, 0.5], "window_hu": [-1024, 2000]})
    recipe = find_recipe("published", text)
    assert (recipe.spacing_mm, recipe.shape, recipe.window_hu) == ((1, 0.5, 0.5), (240, 480, 480), (-1024, 2000))
    assert recipe.recipe_id.startswith("fine-")
    (tmp_path / "fine.json").write_text(text)
    assert find_recipe("published", str(tmp_path / "fine.json")) == recipe
    assert find_recipe("published", '{"shape": [8, 8, 8]}').recipe_id.startswith("custom-")


@pytest.mark.parametrize(
    "changes",
    [
        '{"spacing": [1, 1, 1]}', '{"spacing_mm": [1, 1]}', '{"spacing_mm": [0, 1, 1]}', '{"spacing_mm": "abc"}',
        '{"spacing_mm": [NaN, 1, 1]}', '{"shape": [8, 8, 8.5]}', '{"shape": [8, 8, true]}', '{"shape": 8}',
        '{"shape": [99999, 99999, 99999]}', '{"window_hu": [1000, -1000]}', '{"window_hu": [-99999, 0]}',
        '{"name": "../up"}', '{"name": 5}', "{", "nowhere.json",
    ],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ConfigurationError, match=r"--recipe "):
        find_recipe("published", changes)
