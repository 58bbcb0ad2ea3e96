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

OnCut = Callable[[list[int]], object]  # called with the tokens of each text beyond the limit of a model

TEXT_TOKENS_PER_BATCH = {"cpu": 2**13, "cuda": 2**16}  # tokens with padding; a CPU's batch fits its caches


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
    on_cut: OnCut | None = None,
) -> NDArray[np.float32]:
    """Applies `function(input_ids, attention_mask) -> (B, width)` to texts: (texts, width), in their order.

    Equal texts are encoded once. A batch holds texts of about equal length, padded to its longest: most reports are
    far shorter than the longest, and a padded token costs as much as a real one.
    """
    indices = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    encoded, cut = _encode(tokenizer, list(indices), max_length)
    if on_cut is not None:
        on_cut([cut[indices[text]] for text in texts])
    lengths = [len(ids) for ids in encoded]
    results = np.empty((len(indices), width), np.float32)
    for batch in length_batches(
        lengths, tokens_per_batch or TEXT_TOKENS_PER_BATCH["cuda" if device.type == "cuda" else "cpu"]
    ):
        rows = [torch.tensor(encoded[index]) for index in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.inference_mode(), autocast_to(device, dtype):
            results[batch] = function(ids.to(device), mask.to(device)).float().cpu().numpy()
    return results[[indices[text] for text in texts]]


def count_cut_tokens(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int) -> list[int]:
    """The tokens of each text beyond `max_length`, special tokens included, which a model does not see."""
    return _encode(tokenizer, texts, max_length)[1]


def _encode(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Token ids of each text, cut at `max_length`, and the number of tokens beyond it."""
    if not texts:
        return [], []
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    special = tokenizer.num_special_tokens_to_add()
    rests = [encoding.overflowing for encoding in encoded.encodings]
    return encoded["input_ids"], [sum(len(part.ids) - special for part in rest) for rest in rests]


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices of texts, longest first, in batches of at most `tokens_per_batch` tokens with padding, or one text."""
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(longest_first):
        end = start + max(1, tokens_per_batch // max(1, lengths[longest_first[start]]))
        yield longest_first[start:end]
        start = end
