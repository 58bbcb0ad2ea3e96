"""The gate of a feed-forward layer, in Triton: the first half of the columns times GELU of the second half."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

BLOCK = 1024  # elements of a thread block


@triton.jit
def _gelu(gates):
    """The normal distribution function at the gates, and its density."""
    share = 0.5 * (1.0 + tl.erf(gates * 0.7071067811865476))
    return share, 0.3989422804014327 * tl.exp(-0.5 * gates * gates)


@triton.jit
def _gate(hidden, out, count, width: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    place = hidden + (index // width) * (2 * width) + index % width
    values = tl.load(place, mask=index < count, other=0.0).to(tl.float32)
    gates = tl.load(place + width, mask=index < count, other=0.0).to(tl.float32)
    share, _ = _gelu(gates)
    tl.store(out + index, values * gates * share, mask=index < count)


@triton.jit
def _gate_backward(hidden, slopes, out, count, width: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    offset = (index // width) * (2 * width) + index % width
    values = tl.load(hidden + offset, mask=index < count, other=0.0).to(tl.float32)
    gates = tl.load(hidden + offset + width, mask=index < count, other=0.0).to(tl.float32)
    slope = tl.load(slopes + index, mask=index < count, other=0.0).to(tl.float32)
    share, density = _gelu(gates)
    tl.store(out + offset, slope * gates * share, mask=index < count)
    tl.store(out + offset + width, slope * values * (share + gates * density), mask=index < count)


@triton_op("ctclip::gate", mutates_args={})
def gate(hidden: Tensor) -> Tensor:
    """Gated columns (..., width) of `hidden` (..., 2 width), which is contiguous."""
    width = hidden.shape[-1] // 2
    out = hidden.new_empty((*hidden.shape[:-1], width))
    wrap_triton(_gate)[(triton.cdiv(out.numel(), BLOCK),)](hidden, out, out.numel(), width, BLOCK=BLOCK)
    return out


@triton_op("ctclip::gate_backward", mutates_args={})
def gate_backward(hidden: Tensor, slopes: Tensor) -> Tensor:
    """Gradient of `hidden`."""
    out = torch.empty_like(hidden)
    count = slopes.numel()
    wrap_triton(_gate_backward)[(triton.cdiv(count, BLOCK),)](
        hidden, slopes, out, count, hidden.shape[-1] // 2, BLOCK=BLOCK
    )
    return out


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, slopes: Tensor) -> Tensor:
    return gate_backward(*ctx.saved_tensors, slopes.contiguous())


gate.register_autograd(_backward, setup_context=_keep)
