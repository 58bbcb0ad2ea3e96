"""Manifests of Kubernetes compared with the types of its API, which the package lightkube-models holds."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

MODULES = {"v1": "core_v1", "apps/v1": "apps_v1", "batch/v1": "batch_v1"}


def find_faults(manifest: Mapping[str, Any]) -> list[str]:
    """Fields that Kubernetes does not know, that are missing, or whose values have another type."""
    return list(_compare(manifest, getattr(_import_models(manifest["apiVersion"]), manifest["kind"]), manifest["kind"]))


def _import_models(api_version: str) -> types.ModuleType:
    """The package takes its decorator from the client lightkube. Those of the standard library do."""
    standard = {"dataclass": dataclasses.dataclass, "field": dataclasses.field, "DictMixin": object}
    schema = types.ModuleType("lightkube.core.schema")
    vars(schema).update(standard)
    for module in (types.ModuleType("lightkube.core"), schema):
        sys.modules.setdefault(module.__name__, module)
    return importlib.import_module(f"lightkube.models.{MODULES[api_version]}")


def _compare(value: Any, kind: Any, place: str) -> Iterator[str]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        kinds = [one for one in inner if one is not type(None)]
        faults = [list(_compare(value, one, place)) for one in kinds]
        yield from min(faults, key=len)
    elif origin is list:
        yield from _compare_list(value, inner[0], place)
    elif dataclasses.is_dataclass(kind):
        yield from _compare_fields(value, kind, place)
    elif not isinstance(value, origin or kind) or isinstance(value, bool) is not (kind is bool):
        yield f"{place}: {value!r} is not of type {kind}"


def _compare_list(value: Any, kind: Any, place: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{place}: {value!r} is not a list"
        return
    for index, one in enumerate(value):
        yield from _compare(one, kind, f"{place}[{index}]")


def _compare_fields(value: Any, kind: Any, place: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{place}: {value!r} is not a mapping"
        return
    hints = _resolve_types(kind)
    yield from (f"{place}.{name} is unknown" for name in sorted(set(value) - set(hints)))
    for field in dataclasses.fields(kind):
        if field.name in value:
            yield from _compare(value[field.name], hints[field.name], f"{place}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield f"{place}.{field.name} is missing"


@functools.cache
def _resolve_types(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
