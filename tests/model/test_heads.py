"""The LiPro head: the published numbers, and files that load or are refused by name."""

import numpy as np
import pytest
import torch
from support.golden import load_golden, load_tiny_weights
from support.models import TINY

from ctclip_model.config import LabellerConfig, Preset
from ctclip_model.errors import CheckpointError
from ctclip_model.models.heads import LatentClassifier, LiPro
from ctclip_model.models.model_folder import (
    load_encoders,
    load_head,
    load_model_folder,
    save_model_folder,
)
from ctclip_model.models.report_labeller import ReportLabeller
from ctclip_model.models.text import train_tokenizer
from ctclip_model.models.weights import load_weights

INPUTS, OUTPUTS = load_golden("ctclip_tiny.finetune.inputs"), load_golden("ctclip_tiny.finetune.outputs")
VOLUME = load_golden("ctclip_tiny.inputs")["volume"][:1]
PRESET = Preset("tiny", model=TINY)


def lipro_weights():
    trunk = {f"trained_model.{key}": value for key, value in load_tiny_weights().items()}
    head = {f"classifier.{name}": INPUTS[f"lipro.classifier.{name}"] for name in ("weight", "bias")}
    return trunk | head


@pytest.fixture
def model():
    model = LiPro(TINY)
    model.load_state_dict(lipro_weights())
    return model.eval()


@torch.no_grad()
def test_logits_and_probabilities_are_the_published_ones(model):
    torch.testing.assert_close(model(VOLUME), OUTPUTS["lipro_logits"], rtol=0, atol=1e-5)
    latents = load_golden("ctclip_tiny.outputs")["image_latents"][:1].numpy()
    latents.flags.writeable = False  # as the warehouse gives them
    expected = OUTPUTS["lipro_logits"].double().sigmoid().numpy()
    assert model.classifier.probabilities(latents) == pytest.approx(expected, abs=1e-6)


def test_dropout_is_of_training_alone():
    head, latents = LatentClassifier(200, dropout=0.3), torch.ones(1, 200)
    assert not torch.equal(head(latents), head(latents))
    head.eval()
    assert torch.equal(head(latents), head(latents))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_file_loads_in_every_form_it_comes_in(tmp_path, prefix):
    weights = lipro_weights()
    extra = {"trained_model.text_transformer.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({prefix + key: value for key, value in (weights | extra).items()}, tmp_path / "lipro.pt")
    loaded = load_weights(tmp_path / "lipro.pt", PRESET)
    torch.testing.assert_close(dict(loaded.state_dict()), weights, rtol=0, atol=0)
    assert not loaded.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("classifier.bias"), r"missing classifier\.bias"),
        (lambda weights: weights.pop("trained_model.temperature"), r"missing trained_model\.temperature"),
        (lambda weights: weights.update(temperature=torch.ones(())), "unexpected temperature"),
        (
            lambda weights: weights.update({"classifier.weight": torch.ones(14, 16)}),
            r"classifier\.weight \(14, 16\) in place of \(18, 16\)",
        ),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, change, message):
    weights = lipro_weights()
    change(weights)
    torch.save(weights, tmp_path / "lipro.pt")
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path / "lipro.pt", PRESET)


def test_a_folder_gives_back_the_whole_its_encoders_or_its_head_alone(tmp_path, model):
    tokenizer = train_tokenizer(["Lung nodule."] * 4, vocab_size=80)
    save_model_folder(tmp_path / "a", model, tokenizer, extra={"parent": "b"})
    whole = load_model_folder(tmp_path / "a", LiPro)
    assert (whole.config, whole.info) == (TINY, {"parent": "b"})
    torch.testing.assert_close(dict(whole.model.state_dict()), lipro_weights(), rtol=0, atol=0)
    encoders = load_encoders(tmp_path / "a").model
    torch.testing.assert_close(dict(encoders.state_dict()), load_tiny_weights(), rtol=0, atol=0)
    latents = np.eye(16, dtype=np.float32)
    probabilities = load_head(tmp_path / "a").probabilities(latents)
    assert np.array_equal(probabilities, model.classifier.probabilities(latents))


def test_a_head_is_read_from_a_sound_lipro_folder_alone(tmp_path, model):
    tokenizer = train_tokenizer(["Lung nodule."] * 4, vocab_size=80)
    save_model_folder(tmp_path / "other", model.trained_model, tokenizer)
    save_model_folder(tmp_path / "damaged", model, tokenizer)
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"{}")
    for name in ("other", "damaged", "absent"):
        with pytest.raises(CheckpointError, match="holds no head"):
            load_head(tmp_path / name)


def test_a_labeller_has_no_encoders(tmp_path):
    config = LabellerConfig(vocab_size=80, hidden_size=16, layers=1, heads=2, intermediate_size=16)
    save_model_folder(tmp_path / "a", ReportLabeller(config), train_tokenizer(["Lung nodule."] * 4, vocab_size=80))
    with pytest.raises(CheckpointError, match="encodes no volume"):
        load_encoders(tmp_path / "a")
