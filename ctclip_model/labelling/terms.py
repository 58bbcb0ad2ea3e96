"""The terms that a report states: stems of words and near pairs of them, without what it denies.

Radiology reports name most abnormalities only to deny them ("Pleural effusion was not detected"), in set phrases. What
a denial covers follows the simplest of rules (after NegEx, doi:10.1006/jbin.2001.1029): all of a clause before and
after "not seen", what comes after "no", and nothing beyond a turn such as "but".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ctclip_model.config import TfidfConfig

# Line breaks and double spaces part the points of a list; a missing space after a full stop, two sections joined.
_BREAK = re.compile(r"(?<=[.!?;:])\s+|\s{2,}|[\r\n·•]+|(?<=[^\W\d_]\.)(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")
_TURNS = frozenset(
    ("but", "however", "although", "though", "while", "whereas", "except", "apart", "other", "otherwise")
)
_DENIES_WHAT_FOLLOWS = frozenset(("no", "without", "neither", "nor", "absence", "free"))
_NOT = frozenset(("not", "wasnt", "werent", "isnt", "arent", "doesnt", "dont", "didnt", "hasnt", "cannot"))
_PERCEIVES = re.compile(
    "observ|detect|see|present|found|find|identif|not(e|ed|ic.*)$|show|reveal|demonstr|visual|disting|discern|select|"
    "appreciat|recogni|encounter|monitor|determin|evident|exist|includ|follow|mention"
)
_WORDS_TO_VERB = 3  # between "not" and its verb at most: "not been clearly seen"


def report_terms(report: str, config: TfidfConfig) -> set[str]:
    """All terms that a report states somewhere."""
    return set().union(*(sentence_terms(sentence, config) for sentence in split_statements(report)))


def split_statements(report: str) -> list[str]:
    """The sentences of a report and the points of its lists, in lower case."""
    return [statement.lower() for statement in _BREAK.split(report) if statement and not statement.isspace()]


def sentence_terms(sentence: str, config: TfidfConfig) -> list[str]:
    """The distinct stems that a sentence in lower case states, and the pairs of them, each in alphabetical order."""
    words = _WORD.findall(sentence.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", ""))
    stems = list(dict.fromkeys(word[: config.stem_letters] for word in _stated(words)))
    pairs = [
        f"{stem} {other}" if stem < other else f"{other} {stem}"
        for place, stem in enumerate(stems)
        for other in stems[place + 1 : place + 1 + config.pair_distance]
    ]
    return stems + pairs


def _stated(words: Sequence[str]) -> Iterator[str]:
    """The words of a sentence that no denial covers."""
    for clause in _clauses(words):
        if any(word in _NOT and _has_verb(clause[place + 1 :]) for place, word in enumerate(clause)):
            continue
        for word in clause:
            if word in _DENIES_WHAT_FOLLOWS:
                break
            yield word


def _clauses(words: Sequence[str]) -> Iterator[Sequence[str]]:
    start = 0
    for place, word in enumerate(words):
        if word in _TURNS:
            yield words[start:place]
            start = place + 1
    yield words[start:]


def _has_verb(following: Sequence[str]) -> bool:
    return any(_PERCEIVES.match(word) for word in following[:_WORDS_TO_VERB])
