"""Batches of texts of about equal length, so that little is padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from ctclip_model.device import autocast_to

TEXT_TOKENS_PER_BATCH = {"cpu": 2**13, "cuda": 2**16}  # padding included; on a CPU about what its caches hold


def map_texts(
    function: Callable[[Tensor, Tensor], Tensor],
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    max_length: int,
    device: torch.device,
    dtype: torch.dtype | None,
    width: int,
    tokens_per_batch: int | None = None,
) -> NDArray[np.float32]:
    """`function(input_ids, attention_mask) -> (B, width)` of all the texts, (texts, width) in their order.

    Equal texts are read once. Batches are of texts of about equal length, padded to the longest among them: most
    reports are far shorter than the longest, and every padded token costs as much as a real one.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    encoded = tokenizer(list(places), truncation=True, max_length=max_length)["input_ids"] if places else []
    lengths = [len(ids) for ids in encoded]
    results = np.empty((len(places), width), np.float32)
    for batch in length_batches(
        lengths, tokens_per_batch or TEXT_TOKENS_PER_BATCH["cuda" if device.type == "cuda" else "cpu"]
    ):
        rows = [torch.tensor(encoded[place]) for place in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.inference_mode(), autocast_to(device, dtype):
            results[batch] = function(ids.to(device), mask.to(device)).float().cpu().numpy()
    return results[[places[text] for text in texts]]


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices of texts, longest first, in batches that padding to their first makes about `tokens_per_batch` tokens."""
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(longest_first):
        end = start + max(1, tokens_per_batch // max(1, lengths[longest_first[start]]))
        yield longest_first[start:end]
        start = end
