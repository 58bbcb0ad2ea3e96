"""Custom recipes: a JSON object over a preset's recipe."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import asdict
from pathlib import Path

from ctclip_model.config import Recipe
from ctclip_model.errors import ConfigurationError
from ctclip_model.json_config import parse_config
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
        recipe = parse_config(Recipe, {**asdict(recipe), "name": "custom", **json.loads(text)}, "recipe")
        check_recipe(recipe)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"--recipe {changes}: {error}") from error
    return recipe


def describe_recipe(recipe: Recipe) -> str:
    """Shape, spacing and window of a recipe, in words."""
    shape, spacing = (" x ".join(f"{part:g}" for part in parts) for parts in (recipe.shape, recipe.spacing_mm))
    return f"{shape} voxels of {spacing} mm (depth x height x width), {recipe.window_hu[0]} to {recipe.window_hu[1]} HU"


def convert_command(recipe: Recipe) -> str:
    """The command that converts volumes by a recipe, for a shell."""
    return f"ctclip convert --recipe {shlex.quote(json.dumps(asdict(recipe), separators=(',', ':')))}"


def check_recipe(recipe: Recipe) -> None:
    """Raises `ValueError` for a recipe that cannot be converted."""
    low, high = recipe.window_hu
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", recipe.name):
        raise ValueError(
            f"the name {recipe.name!r} has other characters than small letters, digits, - and _, or more than 40"
        )
    if not all(0 < mm < 1000 for mm in recipe.spacing_mm):
        raise ValueError(f"spacing_mm is {recipe.spacing_mm}, not three lengths between 0 and 1000 mm")
    if math.prod(recipe.shape) > 2**30:
        raise ValueError(f"shape is {recipe.shape}, a product of more than 2^30 voxels")
    if not -(2**15) <= low < high < 2**15:
        raise ValueError(f"window_hu is {recipe.window_hu}, not two HU within int16, the lower one first")
