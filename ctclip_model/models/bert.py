"""What CT-CLIP and the report labeller read of a BERT: the last layer's state of a text's first token.

The modules, and so the names of the weights, are those of `transformers`; only the way through them is ours. No other
token of the last layer is computed, since none is asked for.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def first_token(
    encoder: Any, input_ids: Tensor, attention_mask: Tensor, *, position_ids: Tensor | None = None
) -> Tensor:
    """(B, hidden) of a `BertModel` or `RobertaModel`, of token ids and their mask, (B, tokens) both."""
    hidden = encoder.embeddings(input_ids=input_ids, position_ids=position_ids)  # (B, tokens, hidden)
    mask = attention_mask.bool()[:, None, None]  # (B, 1, 1, tokens)
    *layers, last = encoder.encoder.layer
    for layer in layers:
        hidden = _run_layer(layer, hidden, hidden, mask)
    return _run_layer(last, hidden[:, :1], hidden, mask)[:, 0]


def _run_layer(layer: Any, tokens: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """The layer's output at `tokens` (B, queries, hidden), which look at `context` (B, tokens, hidden)."""
    attention = layer.attention.self
    queries, keys, values = (  # (B, heads, tokens, hidden / heads)
        part.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for part in (attention.query(tokens), attention.key(context), attention.value(context))
    )
    dropout = attention.dropout.p if layer.training else 0.0
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
    attended = layer.attention.output(mixed.transpose(1, 2).flatten(2), tokens)
    output: Tensor = layer.output(layer.intermediate(attended), attended)
    return output
