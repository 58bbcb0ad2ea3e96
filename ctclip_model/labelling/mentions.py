"""Abnormalities that a statement names, by the phrases in `mentions.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import product

from ctclip_model.data.abnormalities import ABNORMALITIES

NEAR = 16  # most words between two words of a phrase


@dataclass(frozen=True)
class _Phrase:
    """The words of a phrase, the rarest first, each as its alternatives, and the words that may not be near."""

    abnormality: str
    words: tuple[frozenset[str], ...]
    excluded: frozenset[str]
    distinct: frozenset[frozenset[str]]


def _read_phrases() -> Iterator[_Phrase]:
    table = tomllib.loads(files(__package__).joinpath("mentions.toml").read_text("utf-8"))
    assert list(table) == list(ABNORMALITIES)
    for name, phrases in table.items():
        for phrase in phrases:
            words = tuple(frozenset(word.replace("_", " ").split("/")) for word in phrase.split() if word[0] != "!")
            excluded = frozenset(word[1:] for word in phrase.split() if word[0] == "!")
            yield _Phrase(name, words, excluded, frozenset(words))


PHRASES: dict[frozenset[str], list[_Phrase]] = {}  # phrases, keyed by their first word
ALTERNATIVES: dict[str, set[frozenset[str]]] = {}  # alternatives of a word, keyed by each of them
for _phrase in _read_phrases():
    PHRASES.setdefault(_phrase.words[0], []).append(_phrase)
    for _alternatives in (*_phrase.words, _phrase.excluded):
        for _word in _alternatives:
            ALTERNATIVES.setdefault(_word, set()).add(_alternatives)


def find_mentions(words: Sequence[str], denied: Set[int]) -> tuple[list[str], set[int]]:
    """Abnormalities that a statement asserts, and the numbers of its denied words.

    `denied` are the numbers of the words that are denied so far. One of them denies its whole phrase.
    """
    places: dict[frozenset[str], list[int]] = {}
    for place, found in enumerate(map(_find_alternatives, words)):
        for alternatives in found:
            places.setdefault(alternatives, []).append(place)
    asserted, all_denied = dict[str, None](), set(denied)
    for phrase in (phrase for first in places if first in PHRASES for phrase in PHRASES[first]):
        if not phrase.distinct <= places.keys():
            continue
        named = list(_occurrences(phrase, places))
        if any(not any(place in denied for place in occurrence) for occurrence in named):
            asserted[phrase.abnormality] = None
        else:
            all_denied.update(*named)
    return list(asserted), all_denied


def _occurrences(phrase: _Phrase, places: Mapping[frozenset[str], Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Places of the words of a phrase, each time that a statement names it."""
    forbidden = places.get(phrase.excluded, ())
    for occurrence in product(*(places[alternatives] for alternatives in phrase.words)):
        first = occurrence[0]
        if max(occurrence) - min(occurrence) <= NEAR and not any(abs(place - first) <= NEAR for place in forbidden):
            yield occurrence


@lru_cache(2**16)
def _find_alternatives(word: str) -> frozenset[frozenset[str]]:
    """The alternatives of all phrases that a word is one of."""
    forms = (word, *(f"{word[:length]}*" for length in range(1, len(word) + 1)))
    return frozenset(alternatives for form in forms for alternatives in ALTERNATIVES.get(form, ()))
