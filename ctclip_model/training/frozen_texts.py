"""Reports and prompts of a text encoder that does not learn, encoded once in place of once in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from numpy.random import Generator
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ctclip_model.models.bert import first_token
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text_batches import map_texts

WriteText = Callable[[list[list[str]], Generator], str]  # a text of a report's sections of sentences


class ReportStates:
    """The text encoder's first tokens of several varied texts of each scan's report, in memory.

    For all scans of CT-RATE, eight texts of 768 numbers take 0.6 GB.
    """

    def __init__(self, states: Tensor, scan_ids: Sequence[str]) -> None:
        self.states = states  # (scans, texts, hidden)
        self.rows = {scan_id: row for row, scan_id in enumerate(scan_ids)}

    def draw(self, scan_ids: Sequence[str], count: int, rng: Generator) -> Tensor:
        """States (B, count, hidden) of texts drawn at random from those of each scan."""
        texts = rng.integers(self.states.shape[1], size=(len(scan_ids), count))
        rows = torch.tensor([self.rows[scan_id] for scan_id in scan_ids])
        return self.states[rows[:, None], torch.from_numpy(texts)]


def encode_reports(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    reports: dict[str, list[list[str]]],
    texts_per_report: int,
    write_text: WriteText,
    rng: Generator,
    *,
    dtype: torch.dtype | None = None,
) -> ReportStates:
    """Encodes `texts_per_report` texts of each scan's report, which `write_text` draws."""
    texts = [write_text(report, rng) for report in reports.values() for _ in range(texts_per_report)]
    states = encode_states(model, tokenizer, texts, dtype=dtype)
    return ReportStates(states.unflatten(0, (-1, texts_per_report)), [*reports])


def encode_states(
    model: CTCLIP, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, dtype: torch.dtype | None = None
) -> Tensor:
    """The first tokens (texts, hidden) of the text encoder, without dropout, float32 on the CPU."""
    encoder = model.text_transformer.eval()
    states = map_texts(
        lambda ids, mask: first_token(encoder, ids, mask),
        tokenizer,
        texts,
        max_length=model.config.text.max_length,
        device=model.temperature.device,
        dtype=dtype,
        width=model.config.text.hidden_size,
    )
    return torch.from_numpy(states)
