"""The two nearest codes of each token, in Triton: products in bfloat16 whose similarities are never written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, CODES, DEPTH = 128, 256, 64  # sizes of a tile


@triton.jit
def _search(
    units, codes, nearest, tokens, count, dim: tl.constexpr,
    TOKENS: tl.constexpr, CODES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The two most similar codes of a block of tokens, among all codes."""
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    depth = tl.arange(0, DEPTH)
    first, second = tl.full((TOKENS,), float("-inf"), tl.float32), tl.full((TOKENS,), float("-inf"), tl.float32)
    first_at, second_at = tl.zeros((TOKENS,), tl.int32), tl.zeros((TOKENS,), tl.int32)
    for start in range(0, count, CODES):
        columns = start + tl.arange(0, CODES)
        similar = tl.zeros((TOKENS, CODES), tl.float32)
        for part in range(0, dim, DEPTH):
            inside = part + depth < dim
            ours = tl.load(
                units + rows[:, None] * dim + part + depth[None, :],
                mask=(rows[:, None] < tokens) & inside[None, :], other=0.0,
            )  # fmt: skip
            theirs = tl.load(
                codes + columns[None, :] * dim + part + depth[:, None],
                mask=(columns[None, :] < count) & inside[:, None], other=0.0,
            )  # fmt: skip
            similar = tl.dot(ours, theirs, similar)
        similar = tl.where(columns[None, :] < count, similar, float("-inf"))
        best, at = tl.max(similar, 1, return_indices=True)
        similar = tl.where(tl.arange(0, CODES)[None, :] == at[:, None], float("-inf"), similar)
        next_best, next_at = tl.max(similar, 1, return_indices=True)
        is_first = best > first
        rest, rest_at = tl.where(is_first, first, best), tl.where(is_first, first_at, start + at)
        first, first_at = tl.where(is_first, best, first), tl.where(is_first, start + at, first_at)
        is_second = rest > second
        second, second_at = tl.where(is_second, rest, second), tl.where(is_second, rest_at, second_at)
        is_second = next_best > second
        second, second_at = tl.where(is_second, next_best, second), tl.where(is_second, start + next_at, second_at)
    tl.store(nearest + 2 * rows, first_at, mask=rows < tokens)
    tl.store(nearest + 2 * rows + 1, second_at, mask=rows < tokens)


def two_nearest(units: Tensor, codes: Tensor) -> Tensor:
    """Indices (N, 2) of the two nearest of the unit codes (codes, dim) for unit vectors (N, dim)."""
    nearest = torch.empty((len(units), 2), dtype=torch.int32, device=units.device)
    _search[(triton.cdiv(len(units), TOKENS),)](
        units.bfloat16().contiguous(), codes.bfloat16().contiguous(), nearest, len(units), len(codes), units.shape[1],
        TOKENS=TOKENS, CODES=CODES, DEPTH=DEPTH, num_warps=8, num_stages=3,
    )  # fmt: skip
    return nearest.long()
