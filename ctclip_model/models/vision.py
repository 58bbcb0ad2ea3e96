"""CT-ViT, the image encoder of CT-CLIP (arXiv 2403.17834, Figure 1, after Phenaki's C-ViViT, arXiv 2210.02399).

In reading order: patches become tokens, a spatial transformer attends within each slab of slices, a temporal one along
depth, and a code book quantizes the tokens. Module names are the keys of the published weights, odd as some are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ctclip_model.config import HU_PER_UNIT, VisionConfig

try:
    from ctclip_model.models.gpu import attention as gpu_attention
    from ctclip_model.models.gpu import code_search as gpu_code_search
    from ctclip_model.models.gpu import gate as gpu_gate
    from ctclip_model.models.gpu import positions as gpu_positions

    HAS_KERNELS = True
except ImportError:  # no Triton, as in PyTorch's build for CPUs
    HAS_KERNELS = False

ATTENTION_SCALE = 8.0  # instead of 1 / sqrt(dim_head): queries and keys are unit vectors times learned scales
SEARCH_ELEMENTS = 2**22  # similarities of tokens and codes in memory at a time
CODEBOOK_DECAY = 0.8
# Tokens that a layer takes at a time: those that fit a CPU's caches, or eight published volumes on a GPU.
TOKENS_AT_ONCE = {"cpu": 2**12 + 2**9, "cuda": 8 * 24**3}
KERNEL_HEADS = (16, 32, 64, 128)  # widths of a head that the GPU's kernel for attention takes
ALIGNMENT = 32  # columns; matrix products with multiples of it are 1.5 times as fast


def by_groups(function: Callable[[Tensor], Tensor], groups: Tensor, group_tokens: int, *, recompute: bool) -> Tensor:
    """Applies `function` to groups (groups, ...) that do not attend to one another, a few groups at a time."""
    function = recomputed(function) if recompute else function
    at_once = max(1, TOKENS_AT_ONCE[groups.device.type] // group_tokens)
    return in_parts(function, groups, at_once)


def in_parts(function: Callable[[Tensor], Tensor], rows: Tensor, at_once: int) -> Tensor:
    """Applies `function` to some rows at a time."""
    return function(rows) if len(rows) <= at_once else torch.cat([function(part) for part in rows.split(at_once)])


def has_kernels(tokens: Tensor) -> bool:
    """Are there kernels of `models.gpu` for these tokens?"""
    return HAS_KERNELS and tokens.is_cuda


def recomputed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps a function so that the backward pass calls it again, in place of kept activations (arXiv 1604.06174)."""
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


class PatchEmbedding(nn.Sequential):
    """Linear embedding of patches between two norms. Index 0 is a reshaping in the published module."""

    def __init__(self, voxels: int, dim: int) -> None:
        super().__init__(nn.Identity(), nn.LayerNorm(voxels), nn.Linear(voxels, dim), nn.LayerNorm(dim))


class GammaNorm(nn.Module):
    """Layer norm with a learned scale and a shift that stays zero."""

    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], self.gamma, self.beta)


class PositionBias(nn.Module):
    """Attention bias for each offset between two tokens of a slab: an MLP over signed log distances."""

    offsets: Tensor
    offset_of_pair: Tensor

    def __init__(self, dim: int, heads: int, height: int, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(2, dim), nn.LeakyReLU(0.1)),
                nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(0.1)),
                nn.Linear(dim, heads),
            ]
        )
        # Pairs of tokens have (2 height - 1)(2 width - 1) different offsets. The MLP computes each offset once.
        rows, columns = torch.arange(1 - height, height), torch.arange(1 - width, width)
        offsets = torch.cartesian_prod(rows, columns).float()
        self.register_buffer("offsets", offsets.sign() * offsets.abs().log1p(), persistent=False)
        row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
        row_offset = row[:, None] - row + height - 1
        column_offset = column[:, None] - column + width - 1
        index = row_offset * (2 * width - 1) + column_offset  # (tokens, tokens)
        self.register_buffer("offset_of_pair", index, persistent=False)

    def forward(self) -> Tensor:
        """The bias (1, heads, tokens, tokens). With fewer axes, attention on a CPU takes a slower path."""
        bias = self.offsets
        for layer in self.net:
            bias = layer(bias)  # (offsets, heads) after the last
        pairs = bias.t().index_select(1, self.offset_of_pair.flatten())
        return pairs.unflatten(1, self.offset_of_pair.shape).unsqueeze(0)


class PositionGenerator(nn.Module):
    """A depthwise 3 x 3 x 3 convolution, causal along depth, that adds positions to tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def add(self, tokens: Tensor, grid: tuple[int, int, int, int]) -> Tensor:
        """Tokens plus their positions. Arguments as in `forward`."""
        if not has_kernels(tokens):
            return tokens + self(tokens, grid)
        weight = self.dsconv.weight.flatten(1).t().contiguous()  # (27, dim)
        on_grid = tokens.contiguous().view(*grid, -1)
        return gpu_positions.add_positions(on_grid, weight, self.dsconv.bias).view(tokens.shape)

    def forward(self, tokens: Tensor, grid: tuple[int, int, int, int]) -> Tensor:
        """Positions of tokens, in their shape. `grid` is (B, depth, height, width) in tokens.

        The temporal transformer's tokens are ordered (B, height, width, depth) and reshaped to the grid without being
        reordered: a slip in the published code, which the published weights were trained with.
        """
        # A sum of three 2-D convolutions, because the backward pass of a depthwise 3-D one is several times slower.
        depth, dim = grid[1], tokens.shape[-1]
        padded = F.pad(tokens.reshape(*grid, dim), (0, 0, 0, 0, 0, 0, 2, 0))
        planes = []
        for tap, weight in enumerate(self.dsconv.weight.unbind(2)):
            slices = padded[:, tap : tap + depth].flatten(0, 1).permute(0, 3, 1, 2)  # (B depth, dim, height, width)
            bias = None if tap else self.dsconv.bias
            planes.append(F.conv2d(slices, weight, bias, padding=1, groups=dim))
        return (planes[0] + planes[1] + planes[2]).permute(0, 2, 3, 1).reshape(tokens.shape)


class Attention(nn.Module):
    """Self-attention by cosine similarity, with learned scales of queries and keys."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.null_kv = nn.Parameter(torch.empty(heads, 0, dim_head), requires_grad=False)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.norm = GammaNorm(dim)
        self.context_norm = GammaNorm(dim).requires_grad_(False)  # unused: the encoder has no cross-attention
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (groups, tokens, dim), each (groups, tokens, heads, dim_head)."""
        queries = self.to_q(self.norm(tokens))
        # Keys and values are made of tokens without the norm. Splitting the weights, not the results, saves a CPU's
        # backward pass from joining large tensors.
        if tokens.is_cuda:
            keys, values = self.to_kv(tokens).chunk(2, dim=-1)
        else:
            keys, values = (F.linear(tokens, weight) for weight in self.to_kv.weight.chunk(2))
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)) for part in (queries, keys, values))
        queries = F.normalize(queries, dim=-1) * self.q_scale
        keys = F.normalize(keys, dim=-1) * self.k_scale
        return queries, keys, values

    def combine(self, mixed: Tensor) -> Tensor:
        """The layer's output (groups, tokens, dim) of mixed values (groups, tokens, heads, dim_head)."""
        return self.to_out(mixed.flatten(2))


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Mixed values (groups, tokens, heads, dim_head) of `Attention.project`, with a bias (1, heads, tokens, tokens)."""
    if has_kernels(values) and values.dtype == torch.bfloat16 and values.shape[-1] in KERNEL_HEADS:
        queries, keys, values = (part.to(values.dtype).contiguous() for part in (queries, keys, values))
        bias = None if bias is None else bias[0].to(values.dtype)
        return gpu_attention.attend(queries, keys, values, bias, ATTENTION_SCALE)[0]
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=ATTENTION_SCALE)
    return mixed.transpose(1, 2)


class FeedForward(nn.ModuleDict):
    """Norm, a hidden layer of 8/3 of the width gated by GELU, and back. Indices 2 and 3 have no weights."""

    def __init__(self, dim: int) -> None:
        hidden = int(dim * 4 * 2 / 3)
        widen, narrow = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        super().__init__({"0": nn.LayerNorm(dim), "1": widen, "4": narrow})

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self["0"](tokens)
        narrow = self.get_parameter("4.weight")
        surplus = -narrow.shape[1] % ALIGNMENT  # added hidden columns of zeros, which change no result
        weights = [F.pad(weight, (0, 0, 0, surplus)) for weight in self.get_parameter("1.weight").chunk(2)]
        if has_kernels(tokens):
            gated = gpu_gate.gate(F.linear(tokens, torch.cat(weights)))
        else:
            values, gates = (F.linear(tokens, weight) for weight in weights)
            gated = values * F.gelu(gates)
        return F.linear(gated, F.pad(narrow, (0, surplus)))


class Layer(nn.Module):
    """Positions, attention, feed-forward. Index 2, cross-attention, is absent from the encoder.

    Not a `ModuleDict`: FSDP2 of PyTorch 2.11 takes it for a container that is never called.
    """

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.add_module("0", PositionGenerator(dim))
        self.add_module("1", Attention(dim, dim_head, heads))
        self.add_module("3", FeedForward(dim))

    def __getitem__(self, name: str) -> Any:
        return self.get_submodule(name)

    def forward(self, tokens: Tensor, grid: tuple[int, int, int, int], bias: Tensor | None, recompute: bool) -> Tensor:
        add = recomputed(self["0"].add) if recompute and not has_kernels(tokens) else self["0"].add
        tokens = add(tokens, grid)
        mix = partial(self.mix, bias=bias, recompute=recompute and tokens.is_cuda)
        return by_groups(mix, tokens, tokens.shape[1], recompute=recompute and not tokens.is_cuda)

    def mix(self, tokens: Tensor, bias: Tensor | None, recompute: bool = False) -> Tensor:
        """Attention and feed-forward.

        With `recompute` all but the attention is computed again: a GPU's kernel for it keeps little, and it costs most.
        """
        wrap = recomputed if recompute else lambda function: function
        queries, keys, values = wrap(self["1"].project)(tokens)
        mixed = attend(queries, keys, values, bias)
        return wrap(self.finish)(tokens, mixed)

    def finish(self, tokens: Tensor, mixed: Tensor) -> Tensor:
        tokens = tokens + self["1"].combine(mixed)
        return tokens + self["3"](tokens)


class Transformer(nn.Module):
    """A stack of layers and a last norm over groups of tokens that attend to one another."""

    def __init__(self, dim: int, depth: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, dim_head, heads) for _ in range(depth))
        self.norm_out = GammaNorm(dim)

    def forward(
        self, tokens: Tensor, grid: tuple[int, int, int, int], bias: Tensor | None = None, recompute: bool = False
    ) -> Tensor:
        """Tokens (groups, tokens, dim) of the same shape."""
        for layer in self.layers:
            tokens = layer(tokens, grid, bias, recompute)
        return self.norm_out(tokens)


class Codebook(nn.Module):
    """The codes and their usage."""

    initted: Tensor
    cluster_size: Tensor
    embed: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("initted", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(1, codes))
        self.register_buffer("embed", F.normalize(torch.randn(1, codes, dim), dim=-1))


class VectorQuantizer(nn.Module):
    """Replaces each token by the nearest code, by cosine similarity (arXiv 2110.04627).

    A forward pass with gradients in training mode records the tokens of each code. `update` then moves the codes, once,
    after the backward pass. Gradients pass straight through to the tokens and never reach the codes. Without codes the
    tokens stay as they are.
    """

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self._codebook = Codebook(codes, dim)
        self.statistics: tuple[Tensor, Tensor] | None = None  # tokens per code (codes,), their sums (codes, dim)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The codes (..., dim) of tokens (..., dim), and the codes' indices (...)."""
        if self.is_empty:
            return tokens, tokens.new_zeros(tokens.shape[:-1], dtype=torch.int64)
        is_half = has_kernels(tokens) and torch.is_autocast_enabled("cuda")
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            units = F.normalize(tokens.detach().float().flatten(0, -2), dim=-1)
            indices = self.search(units, in_bfloat16=is_half)
            if self.training and tokens.requires_grad:
                self.record(units, indices)
            codes = self._codebook.embed[0].index_select(0, indices).view(tokens.shape)
        if tokens.requires_grad:
            codes = codes + (tokens - tokens.detach())
        return codes, indices.view(tokens.shape[:-1])

    @property
    def is_empty(self) -> bool:
        return self._codebook.embed.shape[1] == 0

    def search(self, units: Tensor, *, in_bfloat16: bool = False) -> Tensor:
        """The index of each unit vector's nearest code, a few rows of similarities at a time."""
        codes = F.normalize(self._codebook.embed[0], dim=-1)
        if in_bfloat16:
            return search_in_bfloat16(units, codes)
        return in_parts(partial(search_in_float32, codes=codes), units, max(1, SEARCH_ELEMENTS // len(codes)))

    def record(self, units: Tensor, indices: Tensor) -> None:
        """Adds unit vectors (N, dim) and the indices (N,) of their codes to the statistics of the next update."""
        if self.statistics is None:
            embed = self._codebook.embed[0]
            self.statistics = embed.new_zeros(len(embed)), torch.zeros_like(embed)
        counts, sums = self.statistics
        counts.scatter_add_(0, indices, torch.ones_like(indices, dtype=counts.dtype))  # `bincount` would wait for a GPU
        sums.index_add_(0, indices, units)

    def forget(self) -> None:
        """Drops the statistics recorded since the last update, so that the codes do not move by them."""
        self.statistics = None

    @torch.no_grad()
    def update(self) -> None:
        """Moves each code towards the mean direction of its tokens since the last update."""
        if self.statistics is None:
            return
        (counts, sums), self.statistics = self.statistics, None
        embed = self._codebook.embed[0]
        target = torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), F.normalize(embed, dim=-1))
        embed.lerp_(target, 1 - CODEBOOK_DECAY)
        self._codebook.cluster_size[0].lerp_(counts, 1 - CODEBOOK_DECAY)


def search_in_float32(units: Tensor, codes: Tensor) -> Tensor:
    """The index (N,) of the nearest of the unit codes (codes, dim) for unit vectors (N, dim)."""
    return (units @ codes.t()).argmax(dim=-1)


def search_in_bfloat16(units: Tensor, codes: Tensor) -> Tensor:
    """The same on a GPU, from products in bfloat16. Between the two nearest codes, float32 decides."""
    nearest = gpu_code_search.two_nearest(units, codes).sort(dim=1).values
    exact = (codes[nearest] * units[:, None]).sum(dim=-1)
    return nearest.gather(1, exact.argmax(dim=-1, keepdim=True)).squeeze(1)


class CTViT(nn.Module):
    """The image encoder: a volume (B, 1, depth, height, width) to tokens (B, depth, height, width, dim) of a grid.

    With `recompute`, training takes a quarter of the memory and one forward pass more. Results are the same.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        dim, slices, side = config.dim, config.temporal_patch_size, config.patch_size
        _, height, width = config.grid
        self.spatial_rel_pos_bias = PositionBias(dim, config.heads, height, width)
        self.to_patch_emb_first_frame = PatchEmbedding(side * side, dim).requires_grad_(False)
        self.to_patch_emb = PatchEmbedding(slices * side * side, dim)
        self.enc_spatial_transformer = Transformer(dim, config.spatial_layers, config.dim_head, config.heads)
        self.enc_temporal_transformer = Transformer(dim, config.temporal_layers, config.dim_head, config.heads)
        self.vq = VectorQuantizer(config.codebook_size, dim)
        # The unused decoder of the published pretraining, which is a part of every weights file.
        self.to_pixels_first_frame = nn.Sequential(nn.Linear(dim, side * side)).requires_grad_(False)
        self.to_pixels = nn.Sequential(nn.Linear(dim, slices * side * side)).requires_grad_(False)

    def forward(self, volume: Tensor) -> Tensor:
        """Quantized tokens (B, depth, height, width, dim)."""
        codes, _ = self.vq(self.encode(self.embed(volume)))
        return codes

    def pooled(self, volume: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """The features (B, features) that `pool` makes of the quantized tokens. A GPU takes some volumes at a time."""
        at_once = TOKENS_AT_ONCE["cuda"] // math.prod(self.config.grid) if volume.is_cuda else len(volume)
        return in_parts(lambda part: pool(self(part)), volume, max(1, at_once))

    def embed(self, volume: Tensor) -> Tensor:
        """Patch tokens (B, depth, height, width, dim) of a volume in [-1, 1], or of int16 HU."""
        config = self.config
        expected = (1, config.depth, config.image_size, config.image_size)
        if volume.ndim != 5 or volume.shape[1:] != expected:
            raise ValueError(f"volume is {tuple(volume.shape)}; this model takes (B, {', '.join(map(str, expected))})")
        depth, height, width = config.grid
        slabs = volume.reshape(-1, config.temporal_patch_size, *volume.shape[3:])  # (B depth, slices, height, width)
        # Patches are large and soon made again, so a GPU never keeps them.
        recompute = self.needs_recompute() or (volume.is_cuda and torch.is_grad_enabled())
        tokens = by_groups(self.embed_slabs, slabs, height * width, recompute=recompute)
        return tokens.unflatten(0, (-1, depth))

    def embed_slabs(self, slabs: Tensor) -> Tensor:
        """Patch tokens (slabs, height, width, dim) of voxels (slabs, slices, height, width)."""
        side = self.config.patch_size
        if not slabs.is_floating_point():
            slabs = slabs.float() / HU_PER_UNIT
        patches = slabs.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        return self.to_patch_emb(patches.flatten(3))

    def compile_layers(self) -> None:
        """Compiles the patch embedding, and the attention and feed-forward of the layers, once for all of a shape."""
        self.embed_slabs = torch.compile(self.embed_slabs)  # type: ignore[method-assign]
        for transformer in (self.enc_spatial_transformer, self.enc_temporal_transformer):
            for layer in cast(Iterable[Any], transformer.layers):
                layer.mix = torch.compile(layer.mix)

    def needs_recompute(self) -> bool:
        return torch.is_grad_enabled() and self.recompute

    def encode(self, tokens: Tensor) -> Tensor:
        """Encodes patch tokens to the tokens that the code book quantizes, both (B, depth, height, width, dim)."""
        batch, depth, height, width, _ = tokens.shape
        grid, recompute = (batch, depth, height, width), self.needs_recompute()
        slabs = tokens.flatten(2, 3).flatten(0, 1)  # (B depth, height width, dim)
        slabs = self.enc_spatial_transformer(slabs, grid, self.spatial_rel_pos_bias(), recompute)
        columns = slabs.unflatten(0, (batch, depth)).transpose(1, 2).flatten(0, 1)  # (B height width, depth, dim)
        columns = self.enc_temporal_transformer(columns, grid, None, recompute)
        return columns.view(batch, height, width, depth, -1).permute(0, 3, 1, 2, 4)
