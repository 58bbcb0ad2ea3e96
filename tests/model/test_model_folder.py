"""Model folders: complete, replaced as a whole, and refused if damaged."""

import json

import pytest
import torch
from support.models import load_tiny_model

from ctclip_model.config import LabellerConfig, tiny
from ctclip_model.errors import CheckpointError
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.model_folder import load_model_folder, save_model_folder
from ctclip_model.models.report_labeller import ReportLabeller
from ctclip_model.models.text import tokenize, train_tokenizer

TEXTS = ["Lung nodule, no pleural effusion."] * 4


def labeller() -> ReportLabeller:
    return ReportLabeller(LabellerConfig(vocab_size=80, hidden_size=16, layers=1, heads=2, intermediate_size=16))


@pytest.mark.parametrize("build", [load_tiny_model, labeller])
def test_a_model_folder_gives_back_model_tokenizer_config_and_info(tmp_path, build):
    model, tokenizer = build(), train_tokenizer(TEXTS, vocab_size=80)
    tokens = tokenize(tokenizer, TEXTS, max_length=8)
    save_model_folder(tmp_path / "models" / "a", model, tokenizer, extra={"parent": "b"})
    assert {path.name for path in (tmp_path / "models").rglob("*")} == {
        "a",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    loaded = load_model_folder(tmp_path / "models" / "a", type(model))
    torch.testing.assert_close(dict(loaded.model.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert loaded.config == model.config
    assert loaded.info == {"parent": "b"}
    assert loaded.tokenizer.pad_token == "[PAD]"
    torch.testing.assert_close(tokenize(loaded.tokenizer, TEXTS, max_length=8), tokens, rtol=0, atol=0)


def test_the_limits_of_the_last_call_are_not_saved_with_the_tokenizer(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=80)
    tokenize(tokenizer, TEXTS, max_length=8)
    save_model_folder(tmp_path / "a", labeller(), tokenizer)
    saved = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    assert (saved["truncation"], saved["padding"]) == (None, None)


def test_saving_again_replaces_the_folder(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=80)
    for number in (1, 2):
        save_model_folder(tmp_path / "a", labeller(), tokenizer, extra={"number": number})
    assert load_model_folder(tmp_path / "a").info == {"number": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_save_that_fails_leaves_the_folder_as_it_was(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=80)
    save_model_folder(tmp_path / "a", labeller(), tokenizer)
    with pytest.raises(TypeError):
        save_model_folder(tmp_path / "a", labeller(), tokenizer, extra={"not JSON": object()})
    assert load_model_folder(tmp_path / "a").info == {}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_of_another_model_or_damaged_is_refused(tmp_path):
    folder = tmp_path / "a"
    with pytest.raises(CheckpointError, match="is not a model folder"):
        load_model_folder(folder)
    save_model_folder(folder, labeller(), train_tokenizer(TEXTS, vocab_size=80))
    with pytest.raises(CheckpointError, match="holds a ReportLabeller, not a CTCLIP"):
        load_model_folder(folder, CTCLIP)
    for name, text in (
        ("tokenizer.json", "{}"),
        ("model.safetensors", "{}"),
        ("config.json", json.dumps({"kind": "other", "config": {}, "special_tokens": {}})),
    ):
        (folder / name).write_text(text)
        with pytest.raises(CheckpointError, match=str(folder)):
            _ = load_model_folder(folder).tokenizer


def test_the_tiny_preset_survives_a_model_folder(tmp_path):
    model = CTCLIP(tiny().model)
    save_model_folder(tmp_path / "a", model, train_tokenizer(TEXTS, vocab_size=80))
    assert load_model_folder(tmp_path / "a", CTCLIP).config == tiny().model
