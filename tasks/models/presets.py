"""Presets by name, with the options of a command or a deployment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ctclip_model.config import PRESETS, Preset
from ctclip_model.data.reports import SECTIONS
from ctclip_model.device import Compute, Precision
from ctclip_model.errors import ConfigurationError
from ctclip_model.seeds import check_seed
from tasks.models.find import ModelReference

PROBE_PRESET = "published"  # its settings train the probe of an encoder of another package


def find_preset(
    name: str, *, seed: int = 0, validate_every: int = 0, report_sections: Sequence[str] = SECTIONS
) -> Preset:
    """Finds a preset by name and seeds its training and fine-tuning.

    `validate_every` is in training steps. 0: the preset's own interval. `report_sections` are read in their order.
    Raises `ConfigurationError` for an unknown name of a preset or section, and for a seed out of range.
    """
    check_seed(seed)
    if name not in PRESETS:
        raise ConfigurationError(f"there is no preset {name!r}: choose from {', '.join(PRESETS)}")
    if not report_sections or not set(report_sections) <= set(SECTIONS):
        raise ConfigurationError(
            f"a report has the sections {' and '.join(SECTIONS)}, not {', '.join(report_sections)!r}"
        )
    preset = PRESETS[name]()
    return dataclasses.replace(
        preset,
        training=dataclasses.replace(
            preset.training,
            report_sections=tuple(report_sections),
            seed=seed,
            steps_per_validation=validate_every or preset.training.steps_per_validation,
        ),
        vocabfine=dataclasses.replace(preset.vocabfine, seed=seed),
        lipro=dataclasses.replace(preset.lipro, seed=seed),
    )


def find_preset_of(model: ModelReference, *, seed: int = 0) -> Preset:
    """Finds the preset that a model is fine-tuned by, and seeds it: the model's own one.

    Of an encoder of another package it is the published one under the name that is recorded for the encoder, and its
    probe standardises the latents. Raises `ConfigurationError` for a model that fits no preset.
    """
    if not model.kind.facts.is_frozen:
        return find_preset(model.preset, seed=seed)
    preset = find_preset(PROBE_PRESET, seed=seed)
    lipro = dataclasses.replace(preset.lipro, is_standardised=True)
    return dataclasses.replace(preset, name=model.preset, lipro=lipro)


def choose_compute(preset: Preset, device: str, dtype: Precision, recompute: bool | None, **others: Any) -> Compute:
    """Options of the computation. `recompute` is the preset's own where it is None."""
    return Compute(device, dtype, preset.recompute if recompute is None else recompute, **others)
