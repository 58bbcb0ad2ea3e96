"""Pooling: features are sums of tokens with weights, so that scores split exactly; models without a code book."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import TINY, make_model, make_tokenizer

from ctclip_model.config import PRESETS, CTCLIPConfig, Pooling, compute_fingerprint
from ctclip_model.evaluation.embed import embed_with_tokens
from ctclip_model.evaluation.evidence import Readout, split_scores
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.model_folder import load_model_folder, save_model_folder
from ctclip_model.models.pooling import POOLINGS


def configure(**vision: object) -> CTCLIPConfig:
    return dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, **vision))


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.rand(2, 1, 30, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("kind", list(Pooling))
def test_parts_of_tokens_add_up_to_the_functions_of_the_features(kind):
    vision = configure(pooling=kind, queries=2, patch_features=3).vision
    torch.manual_seed(0)
    pool, tokens = POOLINGS[kind](vision), torch.randn(1, *vision.grid, vision.dim)
    for weight in pool.parameters():
        torch.nn.init.normal_(weight)
    features = pool(tokens)
    gradients = torch.randn(5, pool.features)
    parts = pool.split(gradients, tokens[0])
    assert features.shape == (1, pool.features)
    assert parts.shape == (5, *vision.grid)
    torch.testing.assert_close(parts.sum((1, 2, 3)), gradients @ features[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", list(Pooling))
def test_evidence_of_any_pooling_adds_up_to_the_score(kind, volumes):
    model = make_model(configure(pooling=kind, queries=2, codebook_size=0))
    gradients = np.random.default_rng(0).normal(size=(3, TINY.latent_dim)) * 10
    latents, norms, tokens = embed_with_tokens(model, volumes)
    evidence = split_scores(model, Readout(gradients, np.zeros(3)), tokens[1], norms[1])
    assert np.ptp(evidence.scores) > 1  # or anything would add up
    assert evidence.scores == pytest.approx(gradients @ latents[1], abs=1e-4)
    assert evidence.parts.std(axis=(1, 2, 3)).min() > 0


def test_queries_begin_in_different_parts_of_the_volume():
    vision = configure(pooling=Pooling.attention, queries=2).vision
    pool = POOLINGS[Pooling.attention](vision)
    weights = pool.weigh(torch.randn(1, *vision.grid, vision.dim))[0]
    assert len(weights) == 2 * 2 * 2
    torch.testing.assert_close(weights.sum(1), torch.ones(8))
    places = {tuple(index) for index in np.stack(np.unravel_index(weights.argmax(1).numpy(), vision.grid), 1)}
    assert len(places) == 8


def test_attention_follows_what_tokens_hold():
    vision = configure(pooling=Pooling.attention, queries=1).vision
    pool = POOLINGS[Pooling.attention](vision)
    torch.nn.init.normal_(pool.score.weight)
    tokens = torch.randn(2, *vision.grid, vision.dim)
    assert not torch.allclose(*pool.weigh(tokens), atol=1e-3)


def test_without_a_code_book_tokens_stay_as_they_are(volumes):
    model = make_model(configure(codebook_size=0)).train()
    torch.testing.assert_close(model.image_tokens(volumes), model.unquantized_tokens(volumes))
    model.encode_image(volumes).sum().backward()
    model.update_codebook()
    assert model.visual_transformer.vq.statistics is None


@pytest.mark.parametrize("changes", [{"pooling": kind} for kind in Pooling] + [{"codebook_size": 0}])
def test_a_model_folder_keeps_pooling_and_codes(tmp_path: Path, volumes, changes):
    model = make_model(configure(**changes))
    save_model_folder(tmp_path / "model", model, make_tokenizer(TINY.text.vocab_size))
    loaded = load_model_folder(tmp_path / "model", CTCLIP)
    assert loaded.config == model.config
    with torch.inference_mode():
        assert torch.equal(loaded.model.encode_image(volumes), model.encode_image(volumes))


# Fingerprints of model and training before `added` fields: a changed one would train every model again.
BEFORE = {
    "published": "5a329582004590685dc76bc088c6614a",
    "small_gpu": "2c68cac379f946be7558d1752359ffcd",
    "tiny": "ab59d9dbaf46a36a188a36785aa1ba99",
    "smoke": "e56be698716ca0a795e8b0ab02cf635e",
}


@pytest.mark.parametrize("name", BEFORE)
def test_presets_of_earlier_releases_keep_their_fingerprints(name):
    preset = PRESETS[name]()
    assert compute_fingerprint(preset.model, preset.training) == BEFORE[name]


def test_an_added_setting_is_part_of_a_fingerprint_unless_it_has_its_default():
    first = compute_fingerprint(TINY)
    assert compute_fingerprint(configure(pooling=Pooling.columns)) == first
    assert len({first, *(compute_fingerprint(configure(pooling=kind)) for kind in Pooling)}) == len(Pooling)
    assert compute_fingerprint([TINY]) != compute_fingerprint([configure(queries=5)])
