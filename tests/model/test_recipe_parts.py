"""Parts of a training recipe beside the published ones: labels for the image encoder, prompts, texts encoded once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_runs import short_preset, write_samples

from ctclip_model.config import Preset, TrainingConfig
from ctclip_model.data.label_sets import Finding, LabelSet
from ctclip_model.device import Compute
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.model_folder import load_model_folder
from ctclip_model.models.text import train_tokenizer
from ctclip_model.training.contrastive import teach_contrast, teach_image, train_contrastive
from ctclip_model.training.contrastive_steps import ContrastiveSteps
from ctclip_model.training.engine.loop import StepRecord
from ctclip_model.training.image_encoder import LabelSteps, VolumeClassifier
from ctclip_model.training.samples import TrainingData
from ctclip_model.training.text_encoder import widen_weights

TWO = LabelSet("two", tuple(Finding(name, f"{name} is seen.", f"No {name}.") for name in ("bright", "odd")))
ALL_PARTS: dict[str, Any] = {
    "image_pretraining_samples": 24, "image_pretraining_batch_size": 8, "texts_per_report": 3,
    "text_learning_rate": 0.0, "prompt_loss_weight": 0.5, "volumes_per_scan": 2,
}  # fmt: skip


def make_data(preset: Preset, findings: int = 2, scans: int = 24) -> TrainingData:
    """Volumes whose brightness is the first finding, and reports that say so."""
    rng = np.random.default_rng(0)
    is_bright = torch.arange(scans) % 2
    volumes = torch.from_numpy(rng.integers(-200, 200, (scans, *preset.recipe.shape), np.int16))
    volumes[is_bright == 1, :12] += 600  # half of the volume, since the patches' norm hides a uniform shift
    labels = torch.from_numpy(rng.choice([0.0, 1.0, np.nan], (scans, findings)).astype(np.float32))
    labels[:, 0] = is_bright
    reports = [[[f"The scan is {'bright' if one else 'dark'}."], [f"Number {i}."]] for i, one in enumerate(is_bright)]
    names = [f"train_{i}_a" for i in range(scans)]
    return TrainingData(lambda rows: volumes[torch.as_tensor(rows)], names, reports, labels, names, names)


def make_learner(preset: Preset, data: TrainingData) -> tuple[CTCLIP, Any]:
    texts = [" ".join(sentence for section in report for sentence in section) for report in data.reports]
    torch.manual_seed(0)
    model = CTCLIP(preset.model)
    widen_weights(model.text_transformer)  # or all prompts would be about the same
    return model, train_tokenizer(texts + TWO.prompts * 2, 200)


def list_losses(
    model: CTCLIP, tokenizer: Any, data: TrainingData, config: TrainingConfig, compute: Compute = Compute("cpu")
) -> list[float]:
    losses: list[float] = []

    def on_step(step: StepRecord) -> None:
        losses.append(step.loss)

    teach_contrast(model, tokenizer, data, config, label_set=TWO, compute=compute, on_step=on_step)
    return losses


def without_codes(preset: Preset) -> Preset:
    vision = dataclasses.replace(preset.model.vision, codebook_size=0)
    return dataclasses.replace(preset, model=dataclasses.replace(preset.model, vision=vision))


def test_a_stopped_run_of_all_parts_continues_to_the_same_weights(tmp_path: Path) -> None:
    preset = short_preset(**ALL_PARTS)
    manifest = write_samples(tmp_path, preset.recipe)

    def stop_at(phase: str, step: int) -> Any:
        def stop(record: StepRecord) -> None:
            if (record.phase, record.step) == (phase, step):
                raise KeyboardInterrupt

        return stop

    train_contrastive(manifest, tmp_path, preset, tmp_path / "whole")
    for phase, step in (("image", 2), ("image", 3), ("contrastive", 5)):
        with pytest.raises(KeyboardInterrupt):
            train_contrastive(manifest, tmp_path, preset, tmp_path / "stopped", on_step=stop_at(phase, step))
    train_contrastive(manifest, tmp_path, preset, tmp_path / "stopped")
    whole, stopped = (load_model_folder(tmp_path / name, CTCLIP).model.state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(weight, stopped[name]) for name, weight in whole.items())


def test_labels_teach_the_image_encoder_and_nothing_else() -> None:
    preset = short_preset(
        image_pretraining_samples=400, image_pretraining_batch_size=8, image_pretraining_learning_rate=1e-2
    )
    data = make_data(preset)
    model, _ = make_learner(preset, data)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    losses: list[float] = []
    teach_image(model, data, preset.training, on_step=lambda step: losses.append(step.loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    moved = {name.split(".")[0] for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {"visual_transformer", "to_visual_latent"}


def test_samples_without_a_label_teach_nothing() -> None:
    preset = short_preset(image_pretraining_samples=64)
    data = make_data(preset)
    data.labels[:] = torch.nan
    model, _ = make_learner(preset, data)
    teach_image(model, data, preset.training, on_step=lambda _: pytest.fail("a step was taken"))


def test_label_gradients_in_parts_are_those_of_the_whole() -> None:
    preset = without_codes(short_preset(image_pretraining_batch_size=8, varies_samples=False))
    data = make_data(preset)
    model, _ = make_learner(preset, data)
    classifier = VolumeClassifier(model, 2)
    found = []
    for at_once in (None, 3):
        steps = LabelSteps(model, classifier, data, preset.training, Compute("cpu", encoded_at_once=at_once))
        classifier.zero_grad()
        loss = steps.compute_loss(steps.make_batch(0))
        found.append((loss, classifier.head.weight.grad.clone(), model.to_visual_latent.weight.grad.clone()))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_the_prompt_loss_moves_images_towards_their_own_prompts_of_any_set() -> None:
    preset = without_codes(short_preset(prompt_loss_weight=20.0, samples=480, text_learning_rate=0.0))
    data = make_data(preset)
    model, tokenizer = make_learner(preset, data)
    text = {name: weight.clone() for name, weight in model.text_transformer.state_dict().items()}
    teach_contrast(model, tokenizer, data, preset.training, label_set=TWO)
    steps = ContrastiveSteps(model, tokenizer, data, preset.training, Compute("cpu"), TWO)
    with torch.inference_mode():
        present, absent = steps.prompts.encode()[:2]
        margin = model.eval().encode_image(data.volumes(range(24)).unsqueeze(1)) @ (present - absent)
    assert margin[1::2].mean() > margin[::2].mean()
    assert all(torch.equal(weight, text[name]) for name, weight in model.text_transformer.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"text_learning_rate": 0.0}])
def test_the_prompt_loss_in_parts_is_that_of_the_whole(changes: dict[str, float]) -> None:
    preset = without_codes(short_preset(prompt_loss_weight=2.0, samples=32, **changes))
    data, losses = make_data(preset), []
    for weight, at_once in ((2.0, None), (2.0, 3), (0.0, None)):
        model, tokenizer = make_learner(preset, data)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        config = dataclasses.replace(preset.training, prompt_loss_weight=weight)
        compute = Compute("cpu", encoded_at_once=at_once)
        losses.append(list_losses(model, tokenizer, data, config, compute))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] != pytest.approx(losses[0], rel=1e-2)


def test_texts_encoded_once_are_those_of_each_step() -> None:
    preset = short_preset(samples=48, text_learning_rate=0.0, varies_samples=False)
    data, losses = make_data(preset), []
    for texts_per_report in (0, 2):
        model, tokenizer = make_learner(preset, data)
        config = dataclasses.replace(preset.training, texts_per_report=texts_per_report)
        losses.append(list_losses(model, tokenizer, data, config))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_each_scan_has_texts_of_its_own_report() -> None:
    preset = short_preset(texts_per_report=4, texts_per_volume=3, text_learning_rate=0.0, varies_samples=True)
    data = make_data(preset)
    model, tokenizer = make_learner(preset, data)
    steps = ContrastiveSteps(model, tokenizer, data, preset.training, Compute("cpu"))
    (states,) = steps.make_batch(0).texts
    assert states.shape == (8, 3, preset.model.text.hidden_size)
    for index, drawn in zip(steps.order.batch(0), states, strict=True):
        own = steps.report_states.states[steps.report_states.rows[data.scan_ids[index]]]
        assert all((own == state).all(1).any() for state in drawn)
    assert torch.equal(steps.make_batch(1).texts[0], steps.make_batch(1).texts[0])


def test_texts_of_an_encoder_that_learns_cannot_be_encoded_once() -> None:
    with pytest.raises(ValueError, match=r"texts_per_report is 4.*text_learning_rate 0"):
        TrainingConfig(texts_per_report=4)


@pytest.mark.parametrize(
    ("changes", "learns"),
    [({}, False), ({"image_pretraining_samples": 8}, True), ({"prompt_loss_weight": 0.1}, True),
     ({"text_pretraining_samples": 8}, True)],
)  # fmt: skip
def test_a_training_learns_labels_by_any_of_its_parts(changes: dict[str, Any], learns: bool) -> None:
    assert TrainingConfig(**changes).learns_labels is learns
