import dataclasses

import pytest
import torch
from support.golden import load_golden
from support.models import TINY_LABELLER
from support.paths import GOLDEN

from ctclip_model.errors import CheckpointError
from ctclip_model.models.weights import load_labeller_weights

IO = load_golden("radbert_tiny.io")
WEIGHTS = load_golden("radbert_tiny.weights")


@torch.no_grad()
def test_logits_are_the_published_ones():
    model = load_labeller_weights(GOLDEN / "radbert_tiny.weights.safetensors", TINY_LABELLER)
    torch.testing.assert_close(model(IO["input_ids"], IO["attention_mask"]), IO["logits"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_do_not_depend_on_the_padding_nor_on_its_token():
    model = load_labeller_weights(GOLDEN / "radbert_tiny.weights.safetensors", TINY_LABELLER)
    length = int(IO["attention_mask"][0].sum())
    assert 0 < length < 64
    ids = IO["input_ids"][:1].clone()
    ids[:, length:] = 0
    for end in (length, 64):
        logits = model(ids[:, :end], IO["attention_mask"][:1, :end])
        torch.testing.assert_close(logits, IO["logits"][:1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_positions_count_every_token_even_one_with_the_id_of_the_published_padding():
    model = load_labeller_weights(GOLDEN / "radbert_tiny.weights.safetensors", TINY_LABELLER)
    ids, mask = torch.tensor([[0, 7, 1, 9, 2]]), torch.ones(1, 5, dtype=torch.int64)
    hidden = model.model(ids, attention_mask=mask, position_ids=torch.arange(2, 7)[None])
    torch.testing.assert_close(model(ids, mask), model.classifier(hidden.pooler_output))


def test_a_published_pth_loads_with_its_position_ids(tmp_path):
    path = tmp_path / "RadBertClassifier.pth"
    torch.save(WEIGHTS | {"model.embeddings.position_ids": torch.arange(66)[None]}, path)
    torch.testing.assert_close(load_labeller_weights(path, TINY_LABELLER).state_dict(), WEIGHTS)


def test_another_shape_of_labeller_is_refused():
    with pytest.raises(CheckpointError, match=r"embeddings.weight \(300, 32\) in place of \(301, 32\)$"):
        load_labeller_weights(
            GOLDEN / "radbert_tiny.weights.safetensors", dataclasses.replace(TINY_LABELLER, vocab_size=301)
        )
