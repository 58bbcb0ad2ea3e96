"""The arithmetic of a training step, by which docs/training.md and the GPU's benchmark judge a speed."""

import pytest
from flops import forward_flops, step_flops

from ctclip_model.config import published

TERA = 1e12


def products_of_a_volume() -> tuple[float, float, float]:
    """Operations of patches, layers and code search of the published image encoder, by hand."""
    vision = published().model.vision
    tokens, dim = 24**3, vision.dim
    inner, hidden = vision.heads * vision.dim_head, 1376  # hidden columns are padded to a multiple of 32
    patches = 2 * tokens * 10 * 20 * 20 * dim
    projections = 2 * tokens * dim * (4 * inner + 3 * hidden)
    attention = sum(4 * tokens * group * inner * 4 for group in (24 * 24, 24))
    return patches, 8 * projections + attention, 2 * tokens * dim * vision.codebook_size


def test_a_forward_pass_takes_four_fifths_of_a_teraflop():
    patches, layers, search = products_of_a_volume()
    assert forward_flops(published()) == pytest.approx(patches + layers + search, rel=0.01)
    assert forward_flops(published()) == pytest.approx(0.79 * TERA, rel=0.01)


def test_a_training_step_takes_2_4_teraflop_a_volume():
    patches, layers, search = products_of_a_volume()
    images = step_flops(published(), with_text=False)
    assert images == pytest.approx(3 * (patches + layers) + search, rel=0.01)
    assert step_flops(published()) == pytest.approx(2.41 * TERA, rel=0.01)
