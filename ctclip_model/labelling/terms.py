"""Terms that a report asserts: the abnormalities that it names, stems of its words, and pairs of nearby stems."""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache

from ctclip_model.config import TfidfConfig
from ctclip_model.data.report_layout import split_statements
from ctclip_model.labelling.assertion import has_content, read_words
from ctclip_model.labelling.mentions import find_mentions

MENTION = "@"  # first letter of a term that stands for a named abnormality


def report_terms(report: str, config: TfidfConfig) -> set[str]:
    """All terms that a report asserts somewhere."""
    return set().union(*(statement_terms(statement, config) for statement in split_statements(report)))


def statement_terms(statement: str, config: TfidfConfig, known: Container[str] | None = None) -> list[str]:
    """The distinct terms that a normalised statement asserts. The stems of a pair are in alphabetical order.

    Stems that are not `known`, and their pairs, are left out. None: all are known.
    """
    mentions, stems = _read_statement(statement, config.stem_letters)
    if not stems:
        return list(mentions)
    found = [(place, stem) for place, stem in enumerate(stems) if known is None or stem in known]
    pairs = [
        f"{stem} {other}" if stem < other else f"{other} {stem}"
        for index, (place, stem) in enumerate(found)
        for following, other in found[index + 1 : index + 1 + config.pair_distance]
        if following - place <= config.pair_distance
    ]
    return [*mentions, *(stem for _, stem in found), *pairs]


@lru_cache(2**14)  # many reports share their statements
def _read_statement(statement: str, stem_letters: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The terms of the abnormalities that a statement asserts, and the distinct stems of its other words in order."""
    abnormalities, words = _read_assertion(statement)
    stems = dict.fromkeys(word[:stem_letters] for word in words)
    return tuple(MENTION + abnormality for abnormality in abnormalities), tuple(stems)


@lru_cache(2**14)
def _read_assertion(statement: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The abnormalities and the words with content that a statement asserts."""
    words, own = read_words(statement)
    abnormalities, denied = find_mentions(words, own)
    asserted = (word for place, word in enumerate(words) if place not in denied) if denied else words
    return tuple(abnormalities), tuple(filter(has_content, asserted))


def keep_asserted(report: str, known: Container[str] | None = None) -> str:
    """A report without what it denies: the words with content that each statement asserts, a sentence each.

    Words that are not `known` are left out. None: all are known.

    >>> keep_asserted("No change in the pleural effusion. The study is free of masses.")
    'pleural effusion. study.'
    """
    sentences = (_assertion_words(statement, known) for statement in split_statements(report))
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _assertion_words(statement: str, known: Container[str] | None) -> str:
    words = (word for phrase in _read_assertion(statement)[1] for word in phrase.split())
    return " ".join(word for word in words if known is None or word in known)
