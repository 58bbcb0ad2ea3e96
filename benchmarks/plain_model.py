"""CT-CLIP written plainly, as the published code computes it. Benchmarks and tests compare our model with it.

Every function reads the parameters of one of our modules, so both ways share weights and gradients. The costs of the
published way are kept: full attention matrices, a similarity of every token with every code, one-hot codes, and a
position bias computed for each pair of tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.vision import Attention, CTViT, PositionBias, PositionGenerator, Transformer, VectorQuantizer


def encode_image(model: CTCLIP, volume: Tensor) -> Tensor:
    """Unit latents (B, latent) of volumes (B, 1, depth, height, width)."""
    slab = encode_tokens(model.visual_transformer, volume).mean(dim=1)
    return F.normalize(model.to_visual_latent(slab.flatten(1)), dim=-1)


def encode_tokens(encoder: CTViT, volume: Tensor) -> Tensor:
    """Quantized tokens (B, depth, height, width, dim)."""
    codes, _ = quantize(encoder.vq, transform(encoder, embed_patches(encoder, volume)))
    return codes


def embed_patches(encoder: CTViT, volume: Tensor) -> Tensor:
    """Patch tokens (B, depth, height, width, dim)."""
    depth, height, width = encoder.config.grid
    slices, side = encoder.config.temporal_patch_size, encoder.config.patch_size
    patches = volume.view(-1, depth, slices, height, side, width, side)
    patches = patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
    _, norm, linear, norm_out = encoder.to_patch_emb
    return norm_out(linear(norm(patches)))


def transform(encoder: CTViT, tokens: Tensor) -> Tensor:
    """Tokens that enter the code book, from patch tokens. Attention runs inside slabs, then along depth."""
    batch, depth, height, width, dim = tokens.shape
    grid = (batch, depth, height, width)
    bias = position_bias(encoder.spatial_rel_pos_bias, height, width)
    slabs = tokens.reshape(batch * depth, height * width, dim)
    slabs = run_transformer(encoder.enc_spatial_transformer, slabs, grid, bias)
    columns = slabs.view(batch, depth, height * width, dim).transpose(1, 2).reshape(-1, depth, dim)
    columns = run_transformer(encoder.enc_temporal_transformer, columns, grid, None)
    return columns.view(batch, height, width, depth, dim).permute(0, 3, 1, 2, 4)


def position_bias(bias: PositionBias, height: int, width: int) -> Tensor:
    """Bias of shape (heads, tokens, tokens). The network computes every pair."""
    positions = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(bias.offsets)
    offsets = positions[:, None] - positions  # (tokens, tokens, 2)
    hidden = offsets.sign() * offsets.abs().log1p()
    for layer in bias.net:
        hidden = layer(hidden)
    return hidden.permute(2, 0, 1)


def run_transformer(
    transformer: Transformer, tokens: Tensor, grid: tuple[int, int, int, int], bias: Tensor | None
) -> Tensor:
    """Tokens (groups, tokens, dim) after all layers, in the same shape."""
    for layer in transformer.layers:
        tokens = generate_positions(layer["0"], tokens, grid) + tokens
        tokens = attend(layer["1"], tokens, bias) + tokens
        feed_forward = layer["3"]
        values, gates = feed_forward["1"](feed_forward["0"](tokens)).chunk(2, dim=-1)
        tokens = feed_forward["4"](values * F.gelu(gates)) + tokens
    return transformer.norm_out(tokens)


def generate_positions(positions: PositionGenerator, tokens: Tensor, grid: tuple[int, int, int, int]) -> Tensor:
    """A 3-D convolution of the tokens, reshaped to the grid."""
    on_grid = tokens.reshape(*grid, -1).permute(0, 4, 1, 2, 3)
    convolved = positions.dsconv(F.pad(on_grid, (1, 1, 1, 1, 2, 0)))
    return convolved.permute(0, 2, 3, 4, 1).reshape(tokens.shape)


def attend(attention: Attention, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Cosine-similarity attention with the full matrix of scores."""
    queries = attention.to_q(attention.norm(tokens))
    keys, values = attention.to_kv(tokens).chunk(2, dim=-1)
    queries, keys, values = (
        part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in (queries, keys, values)
    )
    queries = F.normalize(queries, dim=-1) * attention.q_scale
    keys = F.normalize(keys, dim=-1) * attention.k_scale
    scores = torch.einsum("ghid,ghjd->ghij", queries, keys) * 8
    if bias is not None:
        scores = scores + bias
    mixed = torch.einsum("ghij,ghjd->ghid", scores.softmax(dim=-1), values)
    return attention.to_out(mixed.transpose(1, 2).flatten(2))


def quantize(quantizer: VectorQuantizer, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (..., dim) of tokens (..., dim), and the indices of the codes (...). Training mode moves the codes."""
    book = quantizer._codebook
    units = F.normalize(tokens.detach().flatten(0, -2), dim=-1)  # (tokens, dim)
    indices = (units @ F.normalize(book.embed[0], dim=-1).t()).argmax(dim=-1)
    one_hot = F.one_hot(indices, book.embed.shape[1]).to(tokens.dtype)  # (tokens, codes)
    codes = book.embed[0][indices].view(tokens.shape)
    if quantizer.training:
        counts = one_hot.sum(dim=0)
        means = F.normalize((units.t() @ one_hot).t(), dim=-1)
        target = torch.where(counts[:, None] > 0, means, F.normalize(book.embed[0], dim=-1))
        book.embed[0].lerp_(target, 0.2)
        book.cluster_size[0].lerp_(counts, 0.2)
    return tokens + (codes - tokens).detach(), indices.view(tokens.shape[:-1])


def zero_shot(model: CTCLIP, volume: Tensor, prompts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Probabilities (L,) of one volume (1, 1, depth, height, width). The encoder runs once for every abnormality.

    `prompts` holds the ids and the mask of [present, not present] for each abnormality. Both have shape (2, tokens).
    """
    probabilities = []
    for ids, mask in prompts:
        image, texts = encode_image(model, volume), model.encode_text(ids, mask)
        probabilities.append((texts @ image[0] * model.temperature.exp()).softmax(dim=0)[0])
    return torch.stack(probabilities)
