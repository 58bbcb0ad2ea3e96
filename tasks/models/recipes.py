"""Recipes of one's own, as the command line and the deployments give them."""

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
    """The preset's recipe, with what a JSON object changes of it: `name`, `spacing_mm`, `shape`, `window_hu`.

    `changes` is the JSON itself or the path of a file. Recipes that differ at all have folders and rows of their own.
    """
    recipe = find_preset(preset).recipe
    if changes is None:
        return recipe
    try:
        text = changes if changes.lstrip().startswith("{") else Path(changes).read_text(encoding="utf-8")
        fields = json.loads(text)
        known = {field.name for field in dataclasses.fields(Recipe)}
        if unknown := sorted(fields.keys() - known):
            raise ValueError(f"a recipe has no {', '.join(unknown)}, only {', '.join(sorted(known))}")
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
        raise ValueError(f"the name {recipe.name!r} is not made of small letters, digits, - and _")
    if not (are_numbers(recipe.spacing_mm, 3, (int, float)) and all(0 < mm < 1000 for mm in recipe.spacing_mm)):
        raise ValueError(f"spacing_mm is {recipe.spacing_mm}, not three lengths")
    if not (are_numbers(recipe.shape, 3, int) and min(recipe.shape) > 0 and math.prod(recipe.shape) <= 2**30):
        raise ValueError(f"shape is {recipe.shape}, not three numbers of voxels, 2^30 at most")
    if not (are_numbers(recipe.window_hu, 2, int) and -(2**15) <= recipe.window_hu[0] < recipe.window_hu[1] < 2**15):
        raise ValueError(f"window_hu is {recipe.window_hu}, not two HU that int16 holds, the lower one first")
