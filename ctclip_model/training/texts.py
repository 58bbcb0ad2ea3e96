"""Random report texts for training: sentences in other orders and fewer, so that a short prompt is nothing new."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator


def vary_report(sections: Sequence[list[str]], short_share: float, rng: Generator, *, conclusion: int = -1) -> str:
    """A report with the sentences of each section shuffled. A share `short_share` of the reports is shortened.

    A short report is section number `conclusion` (the impression) alone, or between one and half of all sentences.
    """
    shuffled = [[section[index] for index in rng.permutation(len(section))] for section in sections]
    sentences = [sentence for section in shuffled for sentence in section]
    if rng.random() >= short_share:
        return " ".join(sentences)
    if shuffled[conclusion] and rng.random() < 0.5:
        return " ".join(shuffled[conclusion])
    count = rng.integers(1, max(2, len(sentences) // 2 + 1))
    return " ".join(sentences[index] for index in rng.permutation(len(sentences))[:count])
