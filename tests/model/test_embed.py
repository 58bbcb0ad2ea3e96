"""Latents of volumes, texts and prompts, against the golden files."""

import numpy as np
import pytest
import torch
from support.golden import load_golden
from support.models import load_tiny_model

from ctclip_model.config import CTCLIPConfig, tiny
from ctclip_model.data.label_sets import Finding, LabelSet
from ctclip_model.evaluation.embed import batch_size, embed_prompts, embed_texts, embed_volumes
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.models.text import tokenize, train_tokenizer
from ctclip_model.models.text_batches import map_texts

TEXTS = [f"{'No ' * (number % 5)}nodule and effusion." for number in range(9)]


@pytest.fixture(scope="module")
def model():
    return load_tiny_model()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*TEXTS * 2, "x is present", "x is not present"], vocab_size=200)


SCREENING = LabelSet(
    "screening",
    (
        Finding("Nodule", "Nodule is present.", "Nodule is not present."),
        Finding("Effusion", "Effusion is present.", "Effusion is not present."),
    ),
)


def test_golden_volumes_get_the_published_latents_batch_by_batch(model):
    volumes = load_golden("ctclip_tiny.inputs")["volume"]
    batches = [(["a", "b"], volumes[:2]), (["c"], volumes[2:])]
    embedded = list(embed_volumes(model, batches))
    assert [names for names, _ in embedded] == [["a", "b"], ["c"]]
    latents = np.concatenate([latents for _, latents in embedded])
    assert latents.dtype == np.float32
    assert latents == pytest.approx(load_golden("ctclip_tiny.outputs")["image_latents"].numpy(), abs=1e-5)


def test_stored_hu_and_scaled_volumes_get_the_same_latents(model):
    stored = torch.randint(0, 3, (1, 1, 30, 40, 40), dtype=torch.int16)  # faint: layer norms hide a scale
    ((_, from_stored),) = embed_volumes(model, [(["a"], stored)])
    ((_, from_scaled),) = embed_volumes(model, [(["a"], stored / 1000)])
    assert from_stored == pytest.approx(from_scaled, abs=1e-6)


def test_half_precision_latents_are_of_length_one(model):
    volumes = load_golden("ctclip_tiny.inputs")["volume"]
    ((_, latents),) = embed_volumes(model, [(["a", "b", "c"], volumes)], dtype=torch.bfloat16)
    assert np.linalg.norm(latents, axis=1) == pytest.approx(1, abs=1e-6)


def test_texts_keep_their_order_in_any_batches(model, tokenizer):
    alone = np.concatenate([embed_texts(model, tokenizer, [text]) for text in TEXTS])
    assert embed_texts(model, tokenizer, TEXTS, tokens_per_batch=40) == pytest.approx(alone, abs=1e-5)
    assert embed_texts(model, tokenizer, []).shape == (0, 16)


def test_texts_are_padded_to_their_batch_and_not_to_the_longest(tokenizer):
    shapes = []

    def note(ids, mask):
        shapes.append(tuple(ids.shape))
        return mask.sum(dim=1, keepdim=True)

    counts = map_texts(
        note, tokenizer, ["nodule " * 30, *TEXTS[:1] * 2, "nodule " * 31], max_length=20, tokens_per_batch=40,
        device=torch.device("cpu"), dtype=None, width=1,
    )  # fmt: skip
    short = tokenize(tokenizer, TEXTS[:1], 20)["input_ids"].shape[1]
    assert shapes == [(2, 20), (1, short)]  # a repeated text is encoded once
    assert counts[:, 0].tolist() == [20, short, short, 20]


def test_prompts_come_in_pairs_that_make_zero_shot_probabilities(model, tokenizer):
    prompts = embed_prompts(model, tokenizer, SCREENING)
    assert prompts.shape == (2, 2, 16)
    assert prompts[1, 1] == pytest.approx(embed_texts(model, tokenizer, ["Effusion is not present."])[0], abs=1e-5)


def test_golden_latents_get_the_published_zero_shot_probabilities(model):
    inputs, outputs = load_golden("ctclip_tiny.finetune.inputs"), load_golden("ctclip_tiny.finetune.outputs")
    with torch.inference_mode():
        prompts = model.encode_text(inputs["prompt_ids"], inputs["prompt_mask"]).numpy().reshape(18, 2, -1)
    volume = load_golden("ctclip_tiny.outputs")["image_latents"].numpy()[:1]
    probabilities = zero_shot(volume, prompts, model.temperature.exp().item())
    assert probabilities[0] == pytest.approx(outputs["zero_shot_probability"].numpy(), abs=1e-5)


def test_published_volumes_are_encoded_one_by_one_and_tiny_ones_many_at_a_time():
    assert batch_size(CTCLIPConfig(), torch.device("cpu")) == 1
    assert batch_size(CTCLIPConfig(), torch.device("cuda")) == 8
    assert batch_size(tiny().model, torch.device("cpu")) > 16
