"""Contrastive training on several reconstructions of each scan, whose latents are averaged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import read_curve, short_preset, write_samples
from torch import Tensor, nn

from ctclip_model.config import Preset, TrainingConfig, tiny
from ctclip_model.device import Compute
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text import train_tokenizer
from ctclip_model.training import contrastive_steps, samples
from ctclip_model.training.contrastive import teach_contrast, train_contrastive
from ctclip_model.training.contrastive_steps import ContrastiveSteps
from ctclip_model.training.engine.loop import StepRecord
from ctclip_model.training.losses import average_volumes
from ctclip_model.training.samples import BatchOrder, TrainingData
from ctclip_model.training.step_memory import estimate_step

SCANS = ["one", *["two"] * 2, *["three"] * 3]


def make_data(preset: Preset, volumes_of_a_scan: int, scans: int = 8) -> TrainingData:
    torch.manual_seed(1)
    volumes = torch.randint(-1000, 1000, (scans * volumes_of_a_scan, *preset.recipe.shape), dtype=torch.int16)
    names = [f"train_{index}" for index in range(len(volumes))]
    scan_ids = [f"scan_{index // volumes_of_a_scan}" for index in range(len(volumes))]
    reports = [[[f"The scan is {scan}."], [f"Number {scan}."]] for scan in scan_ids]
    labels = torch.zeros(len(volumes), 18)
    return TrainingData(lambda rows: volumes[torch.as_tensor(rows)], scan_ids, reports, labels, names, names)


def make_preset(**training: Any) -> Preset:
    """Few steps without random changes, and no code book, whose codes rounding may decide."""
    preset = short_preset(samples=24, varies_samples=False, codes_from_data=False, **training)
    vision = dataclasses.replace(preset.model.vision, codebook_size=0)
    return dataclasses.replace(preset, model=dataclasses.replace(preset.model, vision=vision))


def make_learner(preset: Preset, data: TrainingData) -> tuple[CTCLIP, Any]:
    torch.manual_seed(0)
    model = CTCLIP(preset.model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, train_tokenizer([" ".join(sentences[0] for sentences in report) for report in data.reports], 200)


def learn(preset: Preset, data: TrainingData, at_once: int | None = None) -> list[StepRecord]:
    records: list[StepRecord] = []
    compute = Compute("cpu", encoded_at_once=at_once)
    teach_contrast(*make_learner(preset, data), data, preset.training, compute=compute, on_step=records.append)
    return records


def list_losses(records: list[StepRecord]) -> list[float]:
    return [record.loss for record in records]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_step_has_all_different_volumes_of_each_scan_that_has_as_many(count: int) -> None:
    order = BatchOrder(SCANS, batch_size=3, seed=0)
    seen = set()
    for step in range(40):
        groups = torch.tensor(order.volumes(step, count)).view(3, count).tolist()
        assert [group[0] for group in groups] == order.batch(step)
        for group in groups:
            (scan,) = {SCANS[index] for index in group}
            assert len(set(group)) == min(count, SCANS.count(scan))
            seen.add(tuple(sorted(set(group))))
    assert {index for group in seen for index in group} == set(range(6))
    assert count != 2 or seen == {(0,), (1, 2), (3, 4), (3, 5), (4, 5)}


def test_a_scans_latent_is_the_unit_mean_of_its_neighbouring_rows() -> None:
    latents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = average_volumes(latents, 2)
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))
    assert average_volumes(latents, 1) is latents


def test_one_volume_shown_twice_teaches_as_once() -> None:
    once, twice = make_preset(), make_preset(volumes_per_scan=2)
    data = make_data(once, 1)
    expected, found = learn(once, data), learn(twice, data)
    assert list_losses(found) == pytest.approx(list_losses(expected), rel=1e-4)
    assert [record.samples for record in found] == [record.samples for record in expected] == [8, 16, 24]


def test_the_loss_sees_the_mean_of_the_volumes_of_each_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = make_preset(volumes_per_scan=2)
    data = make_data(preset, 3)
    model, tokenizer = make_learner(preset, data)
    steps = ContrastiveSteps(model, tokenizer, data, preset.training, Compute("cpu"))
    seen: list[Tensor] = []

    def note_images(_: Tensor, images: Tensor, *others: Any) -> Tensor:
        seen.append(images)
        return images.sum()

    monkeypatch.setattr(steps, "_loss_of_latents", note_images)
    steps.compute_loss(steps.make_batch(0))
    drawn = steps.order.batch(0)
    follow = [index // 3 * 3 + (index + 1) % 3 for index in drawn]
    first, second = (model.encode_image(data.volumes(rows).unsqueeze(1)) for rows in (drawn, follow))
    torch.testing.assert_close(seen[0], nn.functional.normalize(first + second, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 5, 6])
def test_volumes_encoded_in_parts_teach_as_all_at_once(at_once: int) -> None:
    preset = make_preset(volumes_per_scan=2)
    data = make_data(preset, 3)
    assert list_losses(learn(preset, data, at_once)) == pytest.approx(list_losses(learn(preset, data)), rel=1e-4)


def test_parts_hold_no_more_volumes_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = make_preset(volumes_per_scan=2)
    counts: list[int] = []
    make_images = contrastive_steps.make_images

    def count_images(volumes: Tensor, *others: Any) -> Tensor:
        counts.append(len(volumes))
        return make_images(volumes, *others)

    monkeypatch.setattr(contrastive_steps, "make_images", count_images)
    learn(preset, make_data(preset, 2), at_once=5)
    assert set(counts) == {4}


def test_volumes_of_shards_teach_as_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = short_preset(volumes_per_scan=3)
    manifest = write_samples(tmp_path, preset.recipe)
    train_contrastive(manifest, tmp_path, preset, tmp_path / "in_memory")
    monkeypatch.setattr(samples, "PRELOADED_BYTES", 0)
    train_contrastive(manifest, tmp_path, preset, tmp_path / "shards")
    assert read_curve(tmp_path / "shards") == read_curve(tmp_path / "in_memory")
    assert "steps of 8 scans, each by 3 volumes, AdamW" in (tmp_path / "shards/README.md").read_text()


@pytest.mark.parametrize("count", [0, -1])
def test_a_step_needs_a_volume_of_each_scan(count: int) -> None:
    with pytest.raises(ValueError, match=f"volumes_per_scan is {count}: "):
        TrainingConfig(volumes_per_scan=count)


def test_memory_is_that_of_a_volume_with_a_share_of_the_text() -> None:
    base = tiny()
    learned = dataclasses.replace(base.training, text_learning_rate=None)
    one, two = (
        dataclasses.replace(base, training=dataclasses.replace(learned, volumes_per_scan=count)) for count in (1, 2)
    )
    alone, shared = (estimate_step(preset, Compute("cpu")).per_volume for preset in (one, two))
    assert alone / 2 < shared < alone
