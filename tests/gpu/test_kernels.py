"""The Triton kernels against PyTorch in float64, and the published outputs. They need a GPU: `make test-gpu`."""

from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")]

BFLOAT16_ERROR = 5e-3  # relative; products of bfloat16 are summed in float32


@pytest.mark.parametrize(("depth", "side", "dim"), [(24, 24, 512), (5, 7, 48)])
def test_positions(depth, side, dim):
    from on_gpu.parity import errors_of_positions

    assert max(errors_of_positions(2, depth, side, dim).values()) < 1e-5


@pytest.mark.parametrize(
    ("groups", "count", "has_bias"), [(24, 576, True), (576, 24, False), (3, 70, True), (5, 33, False)]
)
def test_attention(groups, count, has_bias):
    from on_gpu.parity import errors_of_attention

    assert max(errors_of_attention(groups, count, has_bias).values()) < BFLOAT16_ERROR


@pytest.mark.parametrize("width", [1376, 40])
def test_gate(width):
    from on_gpu.parity import errors_of_gate

    assert max(errors_of_gate(width).values()) < BFLOAT16_ERROR


def test_codes_found_in_bfloat16_are_those_of_float32():
    from on_gpu.parity import share_of_equal_codes

    assert share_of_equal_codes() > 0.999


def test_golden_outputs():
    from on_gpu.parity import golden_differences

    assert max(golden_differences(None).values()) < 1e-4
    assert golden_differences(torch.bfloat16)["texts"] < 2e-2
