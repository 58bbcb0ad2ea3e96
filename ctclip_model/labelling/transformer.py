"""Report labelling by a transformer such as RadBERT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.report_layout import normalise_report
from ctclip_model.data.reports import split_sentences
from ctclip_model.labelling.terms import keep_asserted
from ctclip_model.models.report_labeller import ReportLabeller
from ctclip_model.models.text_batches import OnCut, count_cut_tokens, map_texts

Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class TextBags:
    """Reports as bags of texts: sentences, or the whole report. A text that several bags share is kept once."""

    texts: list[str]
    members: NDArray[np.int64]  # (reports, texts) indices of each report's texts; a short bag repeats its first

    @staticmethod
    def collect(reports: Sequence[str], by_sentence: bool) -> TextBags:
        bags = [(split_sentences(report) or [""]) if by_sentence else [report] for report in reports]
        indices = {text: index for index, text in enumerate(dict.fromkeys(text for bag in bags for text in bag))}
        longest = max(map(len, bags), default=0)
        members = [[indices[text] for text in bag + bag[:1] * (longest - len(bag))] for bag in bags]
        return TextBags(list(indices), np.array(members, np.int64).reshape(len(bags), longest))

    def add_up(self, counts: Sequence[int]) -> list[int]:
        """The sum of the counts of each report's different texts."""
        by_text = np.asarray(counts, np.int64)
        return [int(by_text[np.unique(members)].sum()) for members in self.members]


class TransformerLabeller:
    """Reads the 18 abnormalities from reports; see `labelling.labeller.Labeller`."""

    def __init__(self, model: ReportLabeller, tokenizer: PreTrainedTokenizerFast, labeller_id: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.labeller_id = labeller_id
        self.vocabulary = frozenset(tokenizer.get_vocab() if model.config.asserted else ())

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """The probabilities (18,) from which on an abnormality counts as present."""
        return np.full(len(ABNORMALITIES), self.model.config.threshold)

    def label(
        self, texts: Sequence[str], *, dtype: torch.dtype | None = None, on_cut: OnCut | None = None
    ) -> Probabilities:
        """The probability (texts, 18) of each abnormality. A `dtype` such as bfloat16 runs the model in autocast."""
        texts = self._read(texts)
        bags = TextBags.collect(texts, self.model.config.by_sentence)
        probabilities = map_texts(
            lambda ids, mask: self.model(ids, mask).float().sigmoid(),
            self.tokenizer,
            bags.texts,
            max_length=self.model.config.max_length,
            device=self.model.classifier.weight.device,
            dtype=dtype,
            width=len(ABNORMALITIES),
            on_cut=None if on_cut is None else lambda cut: on_cut(bags.add_up(cut)),
        )
        return probabilities[bags.members].max(axis=1) if texts else probabilities

    def count_cut(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text beyond the model's limit. With `by_sentence` those of its sentences, added up."""
        bags = TextBags.collect(self._read(texts), self.model.config.by_sentence)
        return bags.add_up(count_cut_tokens(self.tokenizer, bags.texts, self.model.config.max_length))

    def _read(self, texts: Sequence[str]) -> Sequence[str]:
        """Texts in the form that the model was trained on."""
        if self.model.config.asserted:
            return [keep_asserted(text, self.vocabulary) for text in texts]
        if self.model.config.normalised:
            return [normalise_report(text) for text in texts]
        return texts
