"""Attention with a learned bias that keeps no matrix of scores, after FlashAttention-2 (arXiv 2307.08691).

PyTorch's memory-efficient kernel writes the bias's gradient for each group of tokens. Here a thread block sums it over
the groups in registers. All sums have a fixed order, so that equal inputs give equal gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

LOG2_E = tl.constexpr(1.4426950408889634)
BIAS_SHARES = 4  # shares of the groups whose gradients of the bias are summed apart


@triton.jit
def _place(count: tl.constexpr, heads: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Tokens of a thread block, its head, and where its group and head begin in tokens and in numbers a token."""
    block, line = tl.program_id(0) % tl.cdiv(count, BLOCK), tl.program_id(0) // tl.cdiv(count, BLOCK)
    group, head = (line // heads).to(tl.int64), line % heads
    start = (group * count * heads + head) * DIM
    return block * BLOCK + tl.arange(0, BLOCK), head, start, line.to(tl.int64) * count


@triton.jit
def _tile(start, rows, row_stride: tl.constexpr, count: tl.constexpr, DIM: tl.constexpr):
    """Rows of a head's matrix (tokens, DIM), zeros past the last token."""
    return tl.load(
        start + rows[:, None] * row_stride + tl.arange(0, DIM)[None, :], mask=rows[:, None] < count, other=0.0
    )


@triton.jit
def _scores(
    queries, keys, bias, rows, columns, scale: tl.constexpr, count: tl.constexpr, HAS_BIAS: tl.constexpr
):  # fmt: skip
    """Logarithms to base 2 of the unnormalised attention, -inf past the last token."""
    scores = tl.dot(queries, tl.trans(keys)) * (scale * LOG2_E)
    inside = (rows[:, None] < count) & (columns[None, :] < count)
    if HAS_BIAS:
        added = tl.load(bias + rows[:, None] * count + columns[None, :], mask=inside, other=0.0)
        scores += added.to(tl.float32) * LOG2_E
    return tl.where(columns[None, :] < count, scores, float("-inf"))


@triton.jit
def _attend(
    queries, keys, values, bias, out, log_sums, scale: tl.constexpr, count: tl.constexpr, heads: tl.constexpr,
    DIM: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Attention of a block of queries to all keys of its group and head."""
    stride: tl.constexpr = heads * DIM
    rows, head, start, lines = _place(count, heads, DIM, BLOCK)
    ours = _tile(queries + start, rows, stride, count, DIM)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK, DIM), tl.float32)
    for first in range(0, count, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        theirs = _tile(keys + start, columns, stride, count, DIM)
        scores = _scores(ours, theirs, bias + head * count * count, rows, columns, scale, count, HAS_BIAS)
        highest = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(most - highest)
        total = total * shrink + tl.sum(shares, 1)
        payload = _tile(values + start, columns, stride, count, DIM)
        mixed = mixed * shrink[:, None] + tl.dot(shares.to(payload.dtype), payload)
        most = highest
    place = out + start + rows[:, None] * stride + tl.arange(0, DIM)[None, :]
    tl.store(place, mixed / total[:, None], mask=rows[:, None] < count)
    tl.store(log_sums + lines + rows, most + tl.log2(total), mask=rows < count)


@triton.jit
def _slopes(
    queries, keys, values, slopes, bias, log_sums, deltas, rows, columns, scale: tl.constexpr, count: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Attention shares of a block and the loss's gradient by its scores, both (rows, columns)."""
    scores = _scores(queries, keys, bias, rows, columns, scale, count, HAS_BIAS)
    known = rows < count
    shares = tl.exp2(scores - tl.load(log_sums + rows, mask=known, other=0.0)[:, None])
    shares = tl.where(known[:, None], shares, 0.0)
    by_share = tl.dot(slopes, tl.trans(values))
    return shares, shares * (by_share - tl.load(deltas + rows, mask=known, other=0.0)[:, None])


@triton.jit
def _attend_backward_queries(
    queries, keys, values, slopes, bias, log_sums, deltas, by_queries, scale: tl.constexpr, count: tl.constexpr,
    heads: tl.constexpr, DIM: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries."""
    stride: tl.constexpr = heads * DIM
    rows, head, start, lines = _place(count, heads, DIM, BLOCK)
    ours, slope = _tile(queries + start, rows, stride, count, DIM), _tile(slopes + start, rows, stride, count, DIM)
    sums = tl.zeros((BLOCK, DIM), tl.float32)
    for first in range(0, count, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        theirs = _tile(keys + start, columns, stride, count, DIM)
        payload = _tile(values + start, columns, stride, count, DIM)
        _, by_score = _slopes(
            ours, theirs, payload, slope, bias + head * count * count, log_sums + lines, deltas + lines, rows, columns,
            scale, count, HAS_BIAS,
        )  # fmt: skip
        sums += tl.dot(by_score.to(theirs.dtype), theirs)
    place = by_queries + start + rows[:, None] * stride + tl.arange(0, DIM)[None, :]
    tl.store(place, sums * scale, mask=rows[:, None] < count)


@triton.jit
def _attend_backward_keys(
    queries, keys, values, slopes, bias, log_sums, deltas, by_keys, by_values, scale: tl.constexpr,
    count: tl.constexpr, heads: tl.constexpr, DIM: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values."""
    stride: tl.constexpr = heads * DIM
    columns, head, start, lines = _place(count, heads, DIM, BLOCK)
    ours, payload = _tile(keys + start, columns, stride, count, DIM), _tile(values + start, columns, stride, count, DIM)
    key_sums, value_sums = tl.zeros((BLOCK, DIM), tl.float32), tl.zeros((BLOCK, DIM), tl.float32)
    for first in range(0, count, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        theirs, slope = (
            _tile(queries + start, rows, stride, count, DIM),
            _tile(slopes + start, rows, stride, count, DIM),
        )
        shares, by_score = _slopes(
            theirs, ours, payload, slope, bias + head * count * count, log_sums + lines, deltas + lines, rows, columns,
            scale, count, HAS_BIAS,
        )  # fmt: skip
        value_sums += tl.dot(tl.trans(shares.to(slope.dtype)), slope)
        key_sums += tl.dot(tl.trans(by_score.to(theirs.dtype)), theirs)
    place = start + columns[:, None] * stride + tl.arange(0, DIM)[None, :]
    tl.store(by_keys + place, key_sums * scale, mask=columns[:, None] < count)
    tl.store(by_values + place, value_sums, mask=columns[:, None] < count)


@triton.jit
def _attend_backward_bias(
    queries, keys, values, slopes, bias, log_sums, deltas, by_bias, groups, scale: tl.constexpr, count: tl.constexpr,
    heads: tl.constexpr, DIM: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of the bias, summed over a share of the groups."""
    share, head = tl.program_id(2) // heads, tl.program_id(2) % heads
    stride: tl.constexpr = heads * DIM
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for group in range(share, groups, SHARES):
        start = tl.cast(group, tl.int64) * count * stride + head * DIM
        lines = (tl.cast(group, tl.int64) * heads + head) * count
        _, by_score = _slopes(
            _tile(queries + start, rows, stride, count, DIM), _tile(keys + start, columns, stride, count, DIM),
            _tile(values + start, columns, stride, count, DIM), _tile(slopes + start, rows, stride, count, DIM),
            bias + head * count * count, log_sums + lines, deltas + lines, rows, columns, scale, count, True,
        )  # fmt: skip
        sums += by_score
    inside = (rows[:, None] < count) & (columns[None, :] < count)
    place = by_bias + (share * heads + head) * count * count + rows[:, None] * count + columns[None, :]
    tl.store(place, sums, mask=inside)


def _blocks(count: int) -> tuple[int, int]:
    """Tokens of a block, and warps that compute one."""
    return (64, 4) if count > 32 else (32, 1)


@triton_op("ctclip::attend", mutates_args={})
def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention within each group of tokens, and the logarithms to base 2 of its sums (groups, heads, tokens).

    Queries, keys and values are (groups, tokens, heads, dim), of one type and contiguous. `bias` is (heads, tokens,
    tokens). `scale` is the factor on products of queries and keys.
    """
    groups, count, heads, dim = queries.shape
    block, warps = _blocks(count)
    out = torch.empty_like(queries)
    log_sums = torch.empty((groups, heads, count), dtype=torch.float32, device=queries.device)
    wrap_triton(_attend)[(triton.cdiv(count, block) * groups * heads,)](
        queries, keys, values, queries if bias is None else bias, out, log_sums, scale, count, heads,
        DIM=dim, HAS_BIAS=bias is not None, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out, log_sums


@triton_op("ctclip::attend_backward", mutates_args={})
def attend_backward(
    slopes: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, deltas: Tensor,
    log_sums: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values."""
    groups, count, heads, dim = queries.shape
    block, warps = _blocks(count)
    by_queries, by_keys, by_values = (torch.empty_like(part) for part in (queries, keys, values))
    given = (queries, keys, values, slopes, queries if bias is None else bias, log_sums, deltas)
    grid = (triton.cdiv(count, block) * groups * heads,)
    wrap_triton(_attend_backward_queries)[grid](
        *given, by_queries, scale, count, heads, DIM=dim, HAS_BIAS=bias is not None, BLOCK=block, num_warps=warps
    )
    wrap_triton(_attend_backward_keys)[grid](
        *given, by_keys, by_values, scale, count, heads,
        DIM=dim, HAS_BIAS=bias is not None, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return by_queries, by_keys, by_values


@triton_op("ctclip::attend_backward_bias", mutates_args={})
def attend_backward_bias(
    slopes: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, deltas: Tensor, log_sums: Tensor,
    scale: float,
) -> Tensor:  # fmt: skip
    """Gradient of the bias (heads, tokens, tokens), in float32."""
    groups, count, heads, dim = queries.shape
    block, warps = _blocks(count)
    sums = torch.empty((BIAS_SHARES, heads, count, count), dtype=torch.float32, device=queries.device)
    blocks = triton.cdiv(count, block)
    wrap_triton(_attend_backward_bias)[(blocks, blocks, BIAS_SHARES * heads)](
        queries, keys, values, slopes, bias, log_sums, deltas, sums, groups, scale, count, heads,
        DIM=dim, SHARES=BIAS_SHARES, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return sums.sum(dim=0)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    queries, keys, values, bias, ctx.scale = inputs
    ctx.save_for_backward(queries, keys, values, bias, *output)


def _backward(ctx: Any, slopes: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    queries, keys, values, bias, out, log_sums = ctx.saved_tensors
    slopes = slopes.contiguous()
    deltas = (slopes.float() * out.float()).sum(dim=-1).transpose(1, 2).contiguous()  # (groups, heads, tokens)
    given = (slopes, queries, keys, values, bias, deltas, log_sums, ctx.scale)
    by_bias = attend_backward_bias(*given).to(bias.dtype) if bias is not None else None
    return *attend_backward(*given), by_bias, None


attend.register_autograd(_backward, setup_context=_keep)
