"""Configuration from JSON: the same value back, and errors that name the key, the value and the kind."""

from __future__ import annotations

import doctest
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest

from ctclip_model import json_config
from ctclip_model.config import PRESETS, Preset, TrainingConfig, compute_fingerprint
from ctclip_model.errors import ConfigurationError
from ctclip_model.json_config import parse_config, read_config


class Colour(StrEnum):
    red = "red"
    blue = "blue"


@dataclass(frozen=True)
class Box:
    sides: tuple[int, ...]
    path: Path
    colour: Colour = Colour.red
    weight_kg: float | None = None
    facts: dict[str, tuple[str, str]] = field(default_factory=dict)
    kind: Literal["box", "crate"] = "box"
    is_open: bool = False


VALUE = {"sides": [1, 2], "path": "a/b", "facts": {"made": ["here", "today"]}}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_json_with_its_fingerprint(name):
    preset = PRESETS[name]()
    again = parse_config(Preset, json.loads(json.dumps(asdict(preset))))
    assert again == preset
    assert compute_fingerprint(again) == compute_fingerprint(preset)


def test_every_kind_of_field_is_made():
    box = parse_config(Box, VALUE | {"colour": "blue", "weight_kg": 3})
    assert box == Box((1, 2), Path("a/b"), Colour.blue, 3, {"made": ("here", "today")})
    assert isinstance(box.weight_kg, int), "a fingerprint would change with the number's form"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sides": [1, "2"]}, r"box.sides\[1\] is '2', not a whole number"),
        ({"sides": [1, True]}, r"box.sides\[1\] is True, not a whole number"),
        ({"sides": 3}, "box.sides is 3, not a list"),
        ({"colour": "green"}, "box.colour is 'green', not one of red, blue"),
        ({"weight_kg": "3"}, "box.weight_kg is '3', not a number"),
        ({"facts": {"made": ["here"]}}, r"box.facts.made is \['here'\], not a list of 2"),
        ({"facts": []}, r"box.facts is \[\], not an object"),
        ({"kind": "bag"}, "box.kind is 'bag', not one of 'box', 'crate'"),
        ({"is_open": 1}, "box.is_open is 1, not true or false"),
        ({"lid": 1, "key": 2}, "box has no key, lid, only colour, facts"),
    ],
)
def test_wrong_value_is_named(change, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_config(Box, VALUE | change, "box")


def test_missing_keys_are_named():
    with pytest.raises(ConfigurationError, match="Box lacks sides, path"):
        parse_config(Box, {})
    with pytest.raises(ConfigurationError, match="Box is 3, not an object"):
        parse_config(Box, 3)


def test_file_is_named(tmp_path):
    path = tmp_path / "training.json"
    path.write_text('{"batch_size": 4.5}')
    with pytest.raises(ConfigurationError, match=r"training.json.batch_size is 4.5, not a whole number"):
        read_config(TrainingConfig, path)
    path.write_text("{")
    with pytest.raises(ConfigurationError, match=r"training.json is not JSON"):
        read_config(TrainingConfig, path)


def test_example_runs():
    assert doctest.testmod(json_config).failed == 0
