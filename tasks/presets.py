"""Presets by name, as the command line and the deployments give them."""

from __future__ import annotations

import dataclasses

from ctclip_model.config import PRESETS, Preset
from ctclip_model.errors import ConfigurationError


def find_preset(name: str, *, seed: int = 0) -> Preset:
    """The preset of that name, its training seeded."""
    if name not in PRESETS:
        raise ConfigurationError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    preset = PRESETS[name]()
    return dataclasses.replace(preset, training=dataclasses.replace(preset.training, seed=seed))
