"""Custom recipes: a JSON object over a preset's recipe."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

from ctclip_model.config import Recipe
from ctclip_model.errors import ConfigurationError
from tasks.models.presets import find_preset


def find_recipe(preset: str, changes: str | None = None) -> Recipe:
    """A preset's recipe with the changes of a JSON object: `name`, `spacing_mm`, `shape`, `window_hu`.

    `changes` is the JSON text or the path of a file that holds it. Recipes that differ in any field have shards and
    rows of their own. Raises `ConfigurationError` for an unknown field or an impossible value.
    """
    recipe = find_preset(preset).recipe
    if changes is None:
        return recipe
    try:
        text = changes if changes.lstrip().startswith("{") else Path(changes).read_text(encoding="utf-8")
        fields = json.loads(text)
        known = {field.name for field in dataclasses.fields(Recipe)}
        if unknown := sorted(fields.keys() - known):
            raise ValueError(f"a recipe has no field {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
        changed: dict[str, Any] = {"name": "custom"}
        changed |= {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        recipe = dataclasses.replace(recipe, **changed)
        _check_recipe(recipe)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"--recipe {changes}: {error}") from error
    return recipe


def _check_recipe(recipe: Recipe) -> None:
    def are_numbers(values: Any, count: int, kinds: type | tuple[type, ...]) -> bool:
        return len(values) == count and all(isinstance(value, kinds) and value is not True for value in values)

    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", recipe.name):
        raise ValueError(
            f"the name {recipe.name!r} has other characters than small letters, digits, - and _, or more than 40"
        )
    if not (are_numbers(recipe.spacing_mm, 3, (int, float)) and all(0 < mm < 1000 for mm in recipe.spacing_mm)):
        raise ValueError(f"spacing_mm is {recipe.spacing_mm}, not three lengths between 0 and 1000 mm")
    if not (are_numbers(recipe.shape, 3, int) and min(recipe.shape) > 0 and math.prod(recipe.shape) <= 2**30):
        raise ValueError(f"shape is {recipe.shape}, not three whole numbers with a product of at most 2^30 voxels")
    if not (are_numbers(recipe.window_hu, 2, int) and -(2**15) <= recipe.window_hu[0] < recipe.window_hu[1] < 2**15):
        raise ValueError(
            f"window_hu is {recipe.window_hu}, not two whole numbers of HU within int16, the lower one first"
        )
