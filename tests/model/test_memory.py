"""Memory of a training step, estimated beforehand."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from measure import peak_bytes

from ctclip_model.config import PRESETS, Preset, tiny
from ctclip_model.device import Compute, Precision
from ctclip_model.models.clip import CTCLIP
from ctclip_model.training import step_memory
from ctclip_model.training.step_memory import SHARE_USED, StepMemory, estimate_step
from flows.commands import doctor

estimate_once = cache(estimate_step)  # an estimate takes a step of the model


def real_peak(preset: Preset, count: int) -> int:
    model = CTCLIP(preset.model).train()
    volumes = torch.rand(count, 1, *preset.recipe.shape)
    ids = torch.zeros(count, preset.model.text.max_length, dtype=torch.int64)

    def step() -> None:
        model(volumes, ids, torch.ones_like(ids)).backward()
        model.zero_grad(set_to_none=True)

    step()
    return peak_bytes(step)


@pytest.mark.slow
def test_estimate_is_the_memory_of_a_step() -> None:
    base = tiny()
    preset = dataclasses.replace(base, training=dataclasses.replace(base.training, text_learning_rate=None))
    estimate = estimate_step(preset, Compute("cpu"))
    per_volume = (real_peak(preset, 96) - real_peak(preset, 32)) / 64
    assert per_volume + 4 * 24 * 40 * 40 == pytest.approx(estimate.per_volume, rel=0.4)  # plus the volume's own bytes


def test_recomputing_takes_less_for_each_volume() -> None:
    plain, recomputed = (estimate_once(tiny(), Compute("cpu", recompute=recompute)) for recompute in (False, True))
    assert recomputed.per_volume < plain.per_volume


def test_texts_encoded_once_take_no_memory_of_a_step() -> None:
    base = tiny()
    once = dataclasses.replace(base, training=dataclasses.replace(base.training, texts_per_report=8))
    volumes_alone, with_texts = (estimate_once(preset, Compute("cpu")) for preset in (once, base))
    assert volumes_alone.per_volume < with_texts.per_volume


def test_fitting_volumes_leave_a_tenth_free() -> None:
    memory = StepMemory(fixed=40, per_volume=10)
    assert memory.count_fitting(100) == 5
    assert memory.count_fitting(50) == memory.count_fitting(0) == 0


@pytest.mark.parametrize(
    ("volumes", "advice"),
    [(200, "the preset's 96 fits one process"), (7.5, "--at-once 7"), (0, "no volume fits: choose a smaller preset")],
)
def test_doctor_says_what_batch_fits(volumes: float, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = estimate_once(tiny(), Compute("cpu", recompute=True))
    free_bytes = int((memory.fixed + volumes * memory.per_volume) / SHARE_USED)
    monkeypatch.setattr(step_memory, "estimate_step", estimate_once)
    monkeypatch.setattr(doctor, "find_free_memory", lambda: ("a machine", free_bytes))
    *ways, batch = doctor.check_training_memory("tiny", Precision.float32)
    assert ["volumes at once fit" in way.text for way in ways] == [True, True]
    assert advice in batch.text
    assert batch.is_bad == (volumes == 0)


@pytest.mark.parametrize(
    ("volumes", "advice"),
    [(200, "batch of 96 x 2 volumes fits one process"), (100, "--at-once 100"), (1, "no scan fits")],
)
def test_doctor_counts_all_volumes_of_the_scans(volumes: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny()
    preset = dataclasses.replace(base, training=dataclasses.replace(base.training, volumes_per_scan=2))
    monkeypatch.setitem(PRESETS, "tiny", lambda: preset)
    monkeypatch.setattr(step_memory, "estimate_step", lambda *_: StepMemory(fixed=0, per_volume=100))
    monkeypatch.setattr(doctor, "find_free_memory", lambda: ("a machine", int((volumes + 0.5) * 100 / SHARE_USED)))
    assert advice in doctor.check_training_memory("tiny", Precision.float32)[-1].text
