"""Terms of labellers that were trained before layout and assertion had rules of their own (`RULES` below 2).

Such a labeller keeps its labels. A new training reads reports by `terms`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence

from ctclip_model.config import TfidfConfig

_BREAK = re.compile(r"(?<=[.!?;:])\s+|\s{2,}|[\r\n·•]+|(?<=[^\W\d_]\.)(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")
_TURNS = frozenset(
    ("but", "however", "although", "though", "while", "whereas", "except", "apart", "other", "otherwise")
)
_DENIALS = frozenset(("no", "without", "neither", "nor", "absence", "free"))
_NOT = frozenset(("not", "wasnt", "werent", "isnt", "arent", "doesnt", "dont", "didnt", "hasnt", "cannot"))
_PERCEPTION = re.compile(
    "observ|detect|see|present|found|find|identif|not(e|ed|ic.*)$|show|reveal|demonstr|visual|disting|discern|select|"
    "appreciat|recogni|encounter|monitor|determin|evident|exist|includ|follow|mention"
)
_WORDS_TO_VERB = 3  # most words from "not" to its verb: "not been clearly seen"


def split_statements(report: str) -> list[str]:
    """The sentences of a report and the points of its lists, in lower case."""
    return [statement.lower() for statement in _BREAK.split(report) if statement and not statement.isspace()]


def statement_terms(statement: str, config: TfidfConfig, known: Container[str] | None = None) -> list[str]:
    """The distinct stems that a statement in lower case affirms, and pairs of them. Ignores `known`."""
    words = _WORD.findall(statement.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", ""))
    stems = list(dict.fromkeys(word[: config.stem_letters] for word in _affirmed(words)))
    pairs = [
        f"{stem} {other}" if stem < other else f"{other} {stem}"
        for index, stem in enumerate(stems)
        for other in stems[index + 1 : index + 1 + config.pair_distance]
    ]
    return stems + pairs


def _affirmed(words: Sequence[str]) -> Iterator[str]:
    """Words that no denial covers: "not seen" covers its clause, "no" the words after it."""
    for clause in _clauses(words):
        if any(word in _NOT and _has_verb(clause[index + 1 :]) for index, word in enumerate(clause)):
            continue
        for word in clause:
            if word in _DENIALS:
                break
            yield word


def _clauses(words: Sequence[str]) -> Iterator[Sequence[str]]:
    start = 0
    for index, word in enumerate(words):
        if word in _TURNS:
            yield words[start:index]
            start = index + 1
    yield words[start:]


def _has_verb(following: Sequence[str]) -> bool:
    return any(_PERCEPTION.match(word) for word in following[:_WORDS_TO_VERB])
