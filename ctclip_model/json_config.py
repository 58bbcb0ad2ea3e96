"""Configuration from JSON: dataclasses made of its objects, with errors that name keys and values."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ctclip_model.errors import ConfigurationError

T = TypeVar("T")

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def parse_config(kind: type[T], value: Any, name: str = "") -> T:
    """Makes a dataclass from a JSON value, the inverse of `dataclasses.asdict`.

    Lists become tuples. Numbers keep their form, and thus fingerprints their value. `name` names the value in errors.
    Raises `ConfigurationError` that names unknown keys, missing keys, or a value of a wrong type.

    >>> from ctclip_model.config import Recipe
    >>> parse_config(Recipe, {"name": "coarse", "shape": [60, 120, 120]}).shape
    (60, 120, 120)
    >>> parse_config(Recipe, {"shape": [60, 120]}, "recipe")
    Traceback (most recent call last):
    ctclip_model.errors.ConfigurationError: recipe.shape is [60, 120], not a list of 3
    """
    made: T = _parse(kind, value, name or kind.__name__)
    return made


def read_config(kind: type[T], path: Path) -> T:
    """Makes a dataclass from a JSON file. Raises `ConfigurationError` for wrong content, `OSError` without the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON ({error})") from error
    return parse_config(kind, value, str(path))


def _parse(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parse_dataclass(kind, value, name)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _parse_union(parts, value, name)
    if origin is Literal:
        return _check(value, value in parts, f"one of {', '.join(map(repr, parts))}", name)
    if origin is tuple:
        return _parse_tuple(parts, value, name)
    if origin in (dict, Mapping):
        _check(value, isinstance(value, Mapping), "an object", name)
        return {key: _parse(parts[1], part, f"{name}.{key}") for key, part in value.items()}
    if kind is Any:
        return value
    if kind is Path:
        return Path(_parse(str, value, name))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        try:
            return kind(value)
        except ValueError:
            return _check(value, False, f"one of {', '.join(kind)}", name)
    assert kind in EXPECTED, f"no configuration holds {kind}"
    types_ = (int, float) if kind is float else (kind,)
    is_right = isinstance(value, types_) and (kind is bool or not isinstance(value, bool))
    return _check(value, is_right, EXPECTED[kind], name)


def _parse_dataclass(kind: Any, value: Any, name: str) -> Any:
    _check(value, isinstance(value, Mapping), "an object", name)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    if unknown := sorted(map(str, value.keys() - fields.keys())):
        raise ConfigurationError(f"{name} has no {', '.join(unknown)}, only {', '.join(sorted(fields))}")
    needed = (
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    if missing := [key for key in needed if key not in value]:
        raise ConfigurationError(f"{name} lacks {', '.join(missing)}")
    hints = get_type_hints(kind)
    parts = {key: _parse(hints[key], part, f"{name}.{key}") for key, part in value.items()}
    try:
        return kind(**parts)
    except ValueError as error:  # the check in the dataclass's `__post_init__`
        raise ConfigurationError(f"{name}: {error}") from error


def _parse_tuple(kinds: Sequence[Any], value: Any, name: str) -> tuple[Any, ...]:
    """A tuple of any length, `tuple[kind, ...]`, or with one kind for each part."""
    is_list = isinstance(value, (list, tuple))
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        _check(value, is_list, "a list", name)
        kinds = (kinds[0],) * len(value)
    _check(value, is_list and len(value) == len(kinds), f"a list of {len(kinds)}", name)
    return tuple(
        _parse(kind, part, f"{name}[{index}]") for index, (kind, part) in enumerate(zip(kinds, value, strict=True))
    )


def _parse_union(kinds: Sequence[Any], value: Any, name: str) -> Any:
    """The value as the first kind that takes it. Otherwise raises the error of the last kind."""
    if value is None and types.NoneType in kinds:
        return None
    *others, last = (kind for kind in kinds if kind is not types.NoneType)
    for kind in others:
        with suppress(ConfigurationError):
            return _parse(kind, value, name)
    return _parse(last, value, name)


def _check(value: Any, is_right: bool, expected: str, name: str) -> Any:
    if not is_right:
        raise ConfigurationError(f"{name} is {value!r}, not {expected}")
    return value
