"""Presets by name, with the options of a command or a deployment."""

from __future__ import annotations

import dataclasses
from typing import Any

from ctclip_model.config import PRESETS, Preset
from ctclip_model.device import Compute, Precision
from ctclip_model.errors import ConfigurationError
from ctclip_model.seeds import check_seed


def find_preset(name: str, *, seed: int = 0, validate_every: int = 0) -> Preset:
    """Finds a preset by name and seeds its training and fine-tuning.

    `validate_every` is in training steps. 0: the preset's own interval. Raises `ConfigurationError` for an unknown
    name, and for a seed out of range.
    """
    check_seed(seed)
    if name not in PRESETS:
        raise ConfigurationError(f"there is no preset {name!r}: choose from {', '.join(PRESETS)}")
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
    """Options of the computation. `recompute` is the preset's own where it is None."""
    return Compute(device, dtype, preset.recompute if recompute is None else recompute, **others)
