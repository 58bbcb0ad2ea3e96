"""Presets by name, as the command line and the deployments give them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ctclip_model.config import PRESETS, Preset
from ctclip_model.device import Compute, Precision
from ctclip_model.errors import ConfigurationError


def find_preset(name: str, *, seed: int = 0, validate_every: int = 0) -> Preset:
    """The preset of that name, its training and fine-tuning seeded, its training validated every so many steps."""
    if name not in PRESETS:
        raise ConfigurationError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    preset = PRESETS[name]()
    return dataclasses.replace(
        preset,
        training=dataclasses.replace(
            preset.training, seed=seed, steps_per_validation=validate_every or preset.training.steps_per_validation
        ),
        vocabfine=dataclasses.replace(preset.vocabfine, seed=seed),
        lipro=dataclasses.replace(preset.lipro, seed=seed),
    )


def choose_compute(preset: Preset, device: str, dtype: Precision, recompute: bool | None, **others: Any) -> Compute:
    """How to train: as asked, and whether to recompute as the preset has it where that was not asked."""
    return Compute(device, dtype, preset.recompute if recompute is None else recompute, **others)
