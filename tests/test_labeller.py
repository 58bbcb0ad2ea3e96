import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_files import golden
from labelled_reports import write_reports
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig

from ctclip_model.config import LabellerConfig, tiny
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import CheckpointError, ConfigurationError
from ctclip_model.training.labeller import Bags, load_labeller, train_labeller

CONFIG = dataclasses.replace(tiny().labeller, hidden_size=32, epochs=6, patience=6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "labeller-1"
    lines = []
    result = train_labeller(*write_reports(400, seed=0), CONFIG, folder, on_epoch=lines.append)
    return folder, result, lines


def test_a_labeller_learns_negations_and_is_loaded_from_its_folder(trained):
    folder, result, lines = trained
    labeller = load_labeller(folder)
    reports, labels = write_reports(100, seed=1)
    agreement = ((labeller.label(reports) >= labeller.thresholds) == labels).mean()
    assert agreement > 0.99
    assert result.validation_agreement > 0.99
    assert len(lines) == CONFIG.epochs
    assert labeller.labeller_id == "labeller-1"
    assert result.count_parameters == sum(p.numel() for p in labeller.model.parameters())


def test_training_stops_early_and_keeps_the_best_epoch_of_the_group_held_out(tmp_path):
    reports, labels = write_reports(60, seed=0)
    groups = ["a"] * 30 + ["b"] * 30
    config = dataclasses.replace(CONFIG, learning_rate=0.1, epochs=20, patience=2, validation_share=0.5)
    lines = []
    result = train_labeller(reports, labels, config, tmp_path / "a", groups=groups, on_epoch=lines.append)
    assert len(lines) == result.best_epoch + 2 < 20
    probabilities = torch.from_numpy(load_labeller(tmp_path / "a").label(reports)).double()
    losses = F.binary_cross_entropy(probabilities, torch.from_numpy(labels).double(), reduction="none").mean(dim=1)
    by_group = losses.reshape(2, 30).mean(dim=1).tolist()
    assert any(result.validation_loss == pytest.approx(loss, rel=1e-4) for loss in by_group)


def test_labels_do_not_depend_on_order_or_company(trained):
    labeller = load_labeller(trained[0])
    reports = [*write_reports(70, seed=2)[0], "", "There is emphysema. " * 40]
    together = labeller.label(reports)
    order = np.random.default_rng(0).permutation(len(reports))
    assert labeller.label([reports[index] for index in order]) == pytest.approx(together[order], abs=1e-5)
    assert np.concatenate([labeller.label([report]) for report in reports]) == pytest.approx(together, abs=1e-5)
    assert labeller.label([]).shape == (0, len(ABNORMALITIES))


def test_one_text_cannot_both_train_and_validate(tmp_path):
    reports, labels = write_reports(1, seed=0)
    with pytest.raises(ConfigurationError, match="two different reports"):
        train_labeller(reports * 8, labels.repeat(8, axis=0), CONFIG, tmp_path / "a")


def test_the_same_seed_gives_the_same_labeller(tmp_path):
    reports, labels = write_reports(60, seed=0)
    config = dataclasses.replace(CONFIG, epochs=1)
    for name in ("a", "b"):
        train_labeller(reports, labels, config, tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_labels_that_are_unknown_are_refused(tmp_path):
    reports, labels = write_reports(4, seed=0)
    with pytest.raises(ConfigurationError, match="0 or 1"):
        train_labeller(reports, labels - 1, CONFIG, tmp_path / "a")


def test_bags_hold_each_sentence_once():
    bags = Bags.of(["One. Two.", "Two.", ""], by_sentence=True)
    assert bags.texts == ["One.", "Two.", ""]
    assert bags.members.tolist() == [[0, 1], [1, 1], [2, 2]]
    assert Bags.of(["One. Two.", "One. Two."], by_sentence=False).members.tolist() == [[0], [0]]


@pytest.fixture
def radbert(tmp_path):
    """A folder as downloads leave it: a small RoBERTa's configuration and tokenizer, `RadBertClassifier.pth`."""
    folder = tmp_path / "radbert"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(write_reports(50, seed=0)[0], trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", unk_token="<unk>", mask_token="<mask>",
    ).save_pretrained(folder)  # fmt: skip
    RobertaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=66, type_vocab_size=1,
    ).save_pretrained(folder)  # fmt: skip
    torch.save(golden("radbert_tiny.weights"), folder / "RadBertClassifier.pth")
    return folder


def test_the_published_labeller_is_loaded_and_reads_reports_whole(radbert, tmp_path):
    labeller = load_labeller(radbert)
    assert labeller.thresholds.tolist() == [LabellerConfig().threshold] * len(ABNORMALITIES)
    assert labeller.labeller_id.startswith("radbert-")
    report = "There is emphysema. There is no nodule."
    tokens = labeller.tokenizer(report, return_tensors="pt")
    with torch.inference_mode():
        expected = labeller.model(tokens["input_ids"], tokens["attention_mask"]).sigmoid()
    assert labeller.label([report, "Short."])[0] == pytest.approx(expected.numpy()[0], abs=1e-5)

    weights = tmp_path / "RadBertClassifier.pth"
    weights.write_bytes((radbert / "RadBertClassifier.pth").read_bytes())
    assert load_labeller(weights, base=radbert).label([report]) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_folder_without_a_labeller_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="model folder"):
        load_labeller(tmp_path)
