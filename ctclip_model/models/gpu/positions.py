"""The position convolution of CT-ViT on a GPU, in Triton: a depthwise 3 x 3 x 3 convolution of tokens in rows.

A thread block holds a row of tokens of some channels and walks along depth. Each input row is read for three output
planes at once. Libraries take several times as long, because their depthwise kernels are made for other layouts.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

CHANNELS = 64  # channels of a thread block
TAPS = 27


@triton.jit
def _convolve(
    tokens, weight, bias, out, depth: tl.constexpr, height: tl.constexpr, width: tl.constexpr, channels: tl.constexpr,
    FORWARD: tl.constexpr, ROW: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Adds the convolution to the tokens. Backward, the taps are mirrored and the walk along depth runs down."""
    batch, row = tl.program_id(0) // height, tl.program_id(0) % height
    column = tl.arange(0, ROW)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    fits = (column < width) & (channel < channels)
    start = tl.zeros((ROW, CHANNELS), tl.float32)
    if FORWARD:
        start += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    here, next1, next2 = start, start, start
    for step in range(depth):
        plane = step if FORWARD else depth - 1 - step
        base = (batch * depth + plane) * height
        for down in tl.static_range(3):
            for right in tl.static_range(3):
                other_row = row + (down - 1 if FORWARD else 1 - down)
                other_column = column + (right - 1 if FORWARD else 1 - right)
                inside = (other_row >= 0) & (other_row < height) & (other_column >= 0) & (other_column < width)
                place = ((base + other_row) * width + other_column) * channels + channel
                value = tl.load(tokens + place, mask=inside & fits, other=0.0).to(tl.float32)
                tap = weight + (down * 3 + right) * channels + channel
                known = channel < channels
                here += value * tl.load(tap + 18 * channels, mask=known, other=0.0).to(tl.float32)
                next1 += value * tl.load(tap + 9 * channels, mask=known, other=0.0).to(tl.float32)
                next2 += value * tl.load(tap, mask=known, other=0.0).to(tl.float32)
        place = ((base + row) * width + column) * channels + channel
        here += tl.load(tokens + place, mask=fits, other=0.0).to(tl.float32)
        tl.store(out + place, here, mask=fits)
        here, next1, next2 = next1, next2, start


@triton.jit
def _weigh(
    tokens, gradient, out, depth: tl.constexpr, height: tl.constexpr, width: tl.constexpr, channels: tl.constexpr,
    ROW: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients of the taps of one row, and of the bias: sums over the rows of a volume at one height.

    A token acts on its own plane by the third plane of taps, on the next by the second, on the one after by the first.
    """
    batch, row = tl.program_id(0) // height, tl.program_id(0) % height
    down = tl.program_id(2)
    other_row = row + down - 1
    is_inside = (other_row >= 0) & (other_row < height)
    column = tl.arange(0, ROW)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    slope = gradient + (batch * depth * height + row) * width * channels
    token = tokens + (batch * depth * height + other_row) * width * channels
    step: tl.constexpr = height * width * channels  # from a plane to the next
    zero = tl.zeros((ROW, CHANNELS), tl.float32)
    own_left, own_middle, own_right, next_left, next_middle, next_right = zero, zero, zero, zero, zero, zero
    after_left, after_middle, after_right, bias = zero, zero, zero, zero
    own = _load(slope, column, channel, width, channels, row >= 0)
    following = zero
    if depth > 1:
        following = _load(slope + step, column, channel, width, channels, row >= 0)
    for plane in range(depth):
        after = _load(slope + (plane + 2) * step, column, channel, width, channels, plane + 2 < depth)
        left = _load(token + plane * step, column - 1, channel, width, channels, is_inside)
        middle = _load(token + plane * step, column, channel, width, channels, is_inside)
        right = _load(token + plane * step, column + 1, channel, width, channels, is_inside)
        own_left += own * left
        own_middle += own * middle
        own_right += own * right
        next_left += following * left
        next_middle += following * middle
        next_right += following * right
        after_left += after * left
        after_middle += after * middle
        after_right += after * right
        bias += own
        own, following = following, after
    line = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = line < channels
    taps = out + (tl.program_id(0) * 28 + down * 3) * channels + line
    tl.store(taps, tl.sum(after_left, 0), mask=known)
    tl.store(taps + channels, tl.sum(after_middle, 0), mask=known)
    tl.store(taps + 2 * channels, tl.sum(after_right, 0), mask=known)
    tl.store(taps + 9 * channels, tl.sum(next_left, 0), mask=known)
    tl.store(taps + 10 * channels, tl.sum(next_middle, 0), mask=known)
    tl.store(taps + 11 * channels, tl.sum(next_right, 0), mask=known)
    tl.store(taps + 18 * channels, tl.sum(own_left, 0), mask=known)
    tl.store(taps + 19 * channels, tl.sum(own_middle, 0), mask=known)
    tl.store(taps + 20 * channels, tl.sum(own_right, 0), mask=known)
    tl.store(out + (tl.program_id(0) * 28 + 27) * channels + line, tl.sum(bias, 0), mask=known & (down == 1))


@triton.jit
def _load(start, column, channel, width: tl.constexpr, channels: tl.constexpr, is_inside):
    """The tokens of a row at some columns, zero outside."""
    known = is_inside & (column >= 0) & (column < width) & (channel < channels)
    return tl.load(start + column * channels + channel, mask=known, other=0.0).to(tl.float32)


@triton_op("ctclip::add_positions", mutates_args={})
def add_positions(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Tokens plus their positions, (B, depth, height, width, dim), in the type of the tokens.

    `weight` (27, dim) and `bias` (dim,) are those of the convolution, causal along depth, with zeros around.
    """
    batch, depth, height, width, channels = tokens.shape
    out = torch.empty_like(tokens)
    wrap_triton(_convolve)[(batch * height, triton.cdiv(channels, CHANNELS))](
        tokens, weight, bias, out, depth, height, width, channels,
        FORWARD=True, ROW=triton.next_power_of_2(width), CHANNELS=CHANNELS,
    )  # fmt: skip
    return out


@triton_op("ctclip::add_positions_backward", mutates_args={})
def add_positions_backward(gradient: Tensor, tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the tokens, and of the weight with the bias below it (28, dim)."""
    batch, depth, height, width, channels = tokens.shape
    row, blocks = triton.next_power_of_2(width), triton.cdiv(channels, CHANNELS)
    slope = torch.empty_like(gradient)
    wrap_triton(_convolve)[(batch * height, blocks)](
        gradient, weight, weight, slope, depth, height, width, channels,
        FORWARD=False, ROW=row, CHANNELS=CHANNELS,
    )  # fmt: skip
    sums = torch.empty((batch * height, TAPS + 1, channels), dtype=torch.float32, device=tokens.device)
    wrap_triton(_weigh)[(batch * height, blocks, 3)](
        tokens, gradient, sums, depth, height, width, channels, ROW=row, CHANNELS=CHANNELS
    )
    return slope, sums.sum(dim=0)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    tokens, weight, _ = inputs
    ctx.save_for_backward(tokens.bfloat16() if torch.is_autocast_enabled("cuda") else tokens, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tokens, weight = ctx.saved_tensors
    slope, sums = add_positions_backward(gradient.contiguous(), tokens, weight)
    return slope, sums[:TAPS], sums[TAPS]


add_positions.register_autograd(_backward, setup_context=_keep)
