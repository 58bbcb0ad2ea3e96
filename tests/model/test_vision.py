from collections.abc import Iterator

import pytest
import torch
from support.golden import load_golden
from support.models import load_tiny_model
from torch.nn import functional as F

from ctclip_model.models import vision
from ctclip_model.models.vision import PositionBias, VectorQuantizer

INPUTS, OUTPUTS = load_golden("ctclip_tiny.inputs"), load_golden("ctclip_tiny.outputs")
VOLUME = INPUTS["volume"]


@pytest.fixture
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def close(ours: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(ours, OUTPUTS[name], rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_stage_gives_the_published_numbers():
    encoder = load_tiny_model().visual_transformer
    patches = encoder.embed(VOLUME)
    close(patches, "patch_tokens")
    tokens = encoder.encode(patches)
    close(tokens, "pre_vq_tokens")
    codes, indices = encoder.vq(tokens)
    assert torch.equal(indices, OUTPUTS["vq_indices"])
    close(codes, "encoded_tokens")
    close(encoder(VOLUME), "encoded_tokens")


@pytest.mark.parametrize("shape", [(3, 30, 40, 40), (3, 2, 30, 40, 40), (3, 1, 40, 40, 30), (3, 1, 35, 40, 40)])
def test_a_volume_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, 1, 30, 40, 40\)"):
        load_tiny_model().visual_transformer(torch.zeros(shape))


def test_position_bias_equals_the_network_asked_for_every_pair(seeded):
    bias = PositionBias(dim=8, heads=2, height=3, width=4)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(4)).float()
    distance = places[:, None] - places
    network = torch.nn.Sequential(*bias.net)
    expected = network(distance.sign() * distance.abs().log1p())  # (tokens, tokens, heads)
    torch.testing.assert_close(bias(), expected.permute(2, 0, 1)[None])


def test_search_in_chunks_finds_the_same_codes(seeded, monkeypatch):
    quantizer, units = VectorQuantizer(16, 8), F.normalize(torch.randn(50, 8), dim=-1)
    whole = quantizer.search(units)
    monkeypatch.setattr(vision, "SEARCH_ELEMENTS", 7 * 16)
    assert torch.equal(quantizer.search(units), whole)


def test_codes_are_given_as_stored_and_gradients_pass_straight_through(seeded):
    quantizer, tokens = VectorQuantizer(4, 8).eval(), torch.randn(2, 5, 8, requires_grad=True)
    quantizer._codebook.embed.mul_(0.5)  # as after years of updates: a code is no unit vector
    codes, indices = quantizer(tokens)
    assert torch.equal(codes, quantizer._codebook.embed[0][indices])
    codes.square().sum().backward()
    torch.testing.assert_close(tokens.grad, 2 * codes)


def test_one_update_after_two_forwards_equals_one_after_both_together(seeded):
    apart, together = VectorQuantizer(6, 8), VectorQuantizer(6, 8)
    together.load_state_dict(apart.state_dict())
    tokens = torch.randn(20, 8, requires_grad=True)
    for part in tokens.split(9):
        apart(part)
    together(tokens)
    before = apart._codebook.embed.clone()
    for quantizer in (apart, together):
        quantizer.update()
    torch.testing.assert_close(apart.state_dict(), together.state_dict())
    assert not torch.equal(before, apart._codebook.embed)


def test_codes_stay_where_they_are_in_evaluation_mode_and_without_an_update(seeded):
    quantizer, tokens = VectorQuantizer(6, 8), torch.randn(20, 8)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(tokens)  # records, and moves nothing
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
    quantizer = quantizer.eval()
    quantizer.statistics = None
    quantizer(tokens)
    quantizer.update()
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)


def test_a_forward_without_gradients_leaves_the_codes_alone() -> None:
    quantizer = VectorQuantizer(6, 8).train()
    before = quantizer._codebook.embed.clone()
    quantizer(torch.randn(20, 8))
    quantizer.update()
    assert torch.equal(before, quantizer._codebook.embed)
