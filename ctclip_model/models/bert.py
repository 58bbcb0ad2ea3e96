"""The last layer's state of a text's first token, in a BERT or RoBERTa: the input of CT-CLIP and the report labeller.

The modules, and thus the names of the weights, are those of `transformers`. Our forward pass computes no other token
of the last layer, since no result depends on one.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def first_token(
    encoder: Any, input_ids: Tensor, attention_mask: Tensor, *, position_ids: Tensor | None = None
) -> Tensor:
    """The state (B, hidden) of each text's first token.

    `encoder` is a `BertModel` or `RobertaModel`. Ids and mask are both (B, tokens).
    """
    hidden = encoder.embeddings(input_ids=input_ids, position_ids=position_ids)  # (B, tokens, hidden)
    mask = attention_mask.bool()[:, None, None]  # (B, 1, 1, tokens)
    *layers, last = encoder.encoder.layer
    run = getattr(encoder, "run_layer", run_layer)  # or compiled
    for layer in layers:
        hidden = run(layer, hidden, hidden, mask)
    return run(last, hidden[:, :1], hidden, mask)[:, 0]


def run_layer(layer: Any, tokens: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """The layer's output at `tokens` (B, queries, hidden), which attend to `context` (B, tokens, hidden)."""
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
