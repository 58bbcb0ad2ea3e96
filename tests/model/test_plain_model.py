"""The plain way that benchmarks compare with is the published one, and ours is equal to it."""

from __future__ import annotations

import plain_model
import pytest
import torch
from support.golden import load_golden
from support.models import load_tiny_model
from torch import Tensor

from ctclip_model.models import vision
from ctclip_model.models.clip import CTCLIP, contrastive_loss

INPUTS, OUTPUTS = load_golden("ctclip_tiny.inputs"), load_golden("ctclip_tiny.outputs")
VOLUME, TEXT = INPUTS["volume"], (INPUTS["input_ids"], INPUTS["attention_mask"])


def close(plain: Tensor, name: str) -> None:
    torch.testing.assert_close(plain, OUTPUTS[name], rtol=0, atol=1e-5)


def test_groups_of_tokens_come_out_in_their_order(monkeypatch):
    monkeypatch.setitem(vision.TOKENS_AT_ONCE, "cpu", 32)
    with torch.no_grad():
        close(load_tiny_model().encode_image(VOLUME), "image_latents")


@torch.no_grad()
def test_the_plain_way_gives_the_published_numbers():
    model = load_tiny_model()
    encoder = model.visual_transformer
    patches = plain_model.embed_patches(encoder, VOLUME)
    close(patches, "patch_tokens")
    tokens = plain_model.transform(encoder, patches)
    close(tokens, "pre_vq_tokens")
    codes, indices = plain_model.quantize(encoder.vq, tokens)
    assert torch.equal(indices, OUTPUTS["vq_indices"])
    close(codes, "encoded_tokens")
    close(plain_model.encode_image(model, VOLUME), "image_latents")
    prompts = [tuple(part[:2] for part in TEXT)]
    probability = plain_model.zero_shot(model, VOLUME[:1], prompts)
    torch.testing.assert_close(probability[0], OUTPUTS["zero_shot_pair_softmax"][0], rtol=0, atol=1e-5)


def step(model: CTCLIP, images: Tensor) -> dict[str, Tensor]:
    """The gradients of the contrastive loss, by parameter."""
    contrastive_loss(images, model.encode_text(*TEXT), model.temperature).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_plain_training_step_is_the_published_one_and_ours_equals_it(recompute):
    plain, ours = load_tiny_model(), load_tiny_model()
    for model in (plain, ours):
        model.visual_transformer.train()
    ours.visual_transformer.recompute = recompute
    expected = step(plain, plain_model.encode_image(plain, VOLUME))
    gradients = step(ours, ours.encode_image(VOLUME))
    ours.update_codebook()
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-6, (
            name
        )  # some are 0 but for noise
    codebook = plain.visual_transformer.vq._codebook
    close(codebook.embed, "codebook_embed_after")
    close(codebook.cluster_size, "codebook_cluster_size_after")
    torch.testing.assert_close(
        ours.visual_transformer.vq.state_dict(), plain.visual_transformer.vq.state_dict(), rtol=0, atol=1e-5
    )
