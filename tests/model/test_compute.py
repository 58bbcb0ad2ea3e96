"""Training learns the same with and without recomputed activations, and nearly the same in another precision."""

from __future__ import annotations

import pytest
import torch
from support.golden import load_golden
from support.models import load_tiny_model

from ctclip_model.models import vision

INPUTS = load_golden("ctclip_tiny.inputs")
VOLUME, TEXT = INPUTS["volume"], (INPUTS["input_ids"], INPUTS["attention_mask"])


def gradients(model, dtype=None):
    """Gradients of a training step by parameter, and the code book after the step."""
    model.visual_transformer.train()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        model(VOLUME, *TEXT).backward()
    model.update_codebook()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return found | {"codes": model.visual_transformer.vq._codebook.embed}


def assert_close(ours, expected, tolerance):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] - value).norm() <= tolerance * value.norm() + 1e-6, name


def test_groups_of_tokens_change_no_gradient(monkeypatch):
    expected = gradients(load_tiny_model())
    monkeypatch.setitem(vision.TOKENS_AT_ONCE, "cpu", 60)
    assert_close(gradients(load_tiny_model()), expected, 1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_recomputing_changes_no_gradient_and_records_each_token_once(monkeypatch, dtype):
    monkeypatch.setitem(vision.TOKENS_AT_ONCE, "cpu", 60)
    recomputed = load_tiny_model()
    recomputed.visual_transformer.recompute = True
    assert_close(gradients(recomputed, dtype), gradients(load_tiny_model(), dtype), 1e-5)


def test_recomputing_keeps_less_for_the_backward_pass():
    def kept_bytes(recompute):
        model, sizes = load_tiny_model(), []
        model.visual_transformer.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            model.visual_transformer(VOLUME)
        return sum(sizes)

    assert kept_bytes(True) < kept_bytes(False) / 4


def test_half_precision_trains_in_about_the_same_direction_and_float32_weights():
    model = load_tiny_model()
    half, full = gradients(model, torch.bfloat16), gradients(load_tiny_model())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for name in ("to_visual_latent.weight", "to_text_latent.weight"):
        assert torch.cosine_similarity(half[name].flatten(), full[name].flatten(), dim=0) > 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_layers_give_the_same_gradients():
    compiled = load_tiny_model()
    compiled.visual_transformer.compile_layers()
    compiled.visual_transformer.recompute = True
    assert_close(gradients(compiled), gradients(load_tiny_model()), 1e-4)
