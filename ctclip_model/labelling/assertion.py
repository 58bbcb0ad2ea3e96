"""Words that a statement of a report asserts, after NegEx and ConText.

A denial has a scope, which ends at a turn such as "but", at the next verb or at the end of a list. A doubted
abnormality ("possible", "cannot be excluded") counts as asserted: a reader would look for it. One that is denied, gone,
asked for ("to rule out", "if") or another person's does not. `assertion.toml` holds the words and the rules.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise

_TABLE = tomllib.loads(files(__package__).joinpath("assertion.toml").read_text("utf-8"))
_CLASSES = {
    word.replace("_", " ").replace("?", letter): name
    for name, words in _TABLE["classes"].items()
    for word in words.split()
    for letter in "sz"
}
_WORD = re.compile(
    r"-free\b|[^\W\d_]+|(?:19|20)\d\d|(?<![\d.,])0(?= [a-z]{4})|(?<=[:=] )0(?![\d.,]*\d)|[,:;=]|(?<=[ (])[-+](?![^\W_])"
)
_QUERY = re.compile(r"(?<![^\s(])\?(?=[^\W\d_])")  # "?effusion" asks for it
ADVERBS = "[aADeu]*"


def _compile(patterns: Sequence[str]) -> str:
    return "|".join(pattern.replace("~", ADVERBS) for pattern in patterns)


def _read_phrases() -> dict[str, dict[str, list[list[str]]]]:
    """Words of each phrase, longest phrases first, by their first word and their second."""
    phrases: dict[str, dict[str, list[list[str]]]] = {}
    for phrase in sorted(_CLASSES, key=len, reverse=True):
        if " " in phrase:
            words = phrase.split()
            phrases.setdefault(words[0], {}).setdefault(words[1], []).append(words)
    return phrases


_PHRASES = _read_phrases()
_RULES = "|".join(f"(?P<{kind}>{_compile(patterns)})" for kind, patterns in _TABLE["rules"].items())
_MARKS = re.compile(f"(?![.d1&|])(?:{_RULES})")  # no rule begins with one of these classes
_PAST = re.compile(_compile(_TABLE["clauses"]["past"]))
# A relative clause, with or without its pronoun: its commas join nothing.
_INSERTED = re.compile(",R[^,]*(?:,|$)|,(?:[tae]*[sSp]|d)[^,kKP]*,(?=[bBht])")
_DENIAL = re.compile("[tnMHgrzZxq3pyQiAUJXI:-]|Nl|l.*N")
_CONTENT = re.compile("[.cyolGjzZLU]")
_SUBJECT = re.compile(f"{_CONTENT.pattern}|u")
# The joint after which a verb has a subject of its own: "no A, the B was seen", "no A, and B ...", "no A or B, C is".
_NEW_SUBJECT = re.compile(r"[,&](?=1)|^[^,|]*,(?=&[^,|]*$)")
_OTHER_SUBJECT = re.compile(rf"{_NEW_SUBJECT.pattern}|\|[^,]*,(?=[^,|&]*$)")
_BEGINS_PHRASE = re.compile("[d1]*M")
_LISTED = re.compile(".*[&|][^,&|]*(?=,)")
_VERBS = ("seen", "is", "after")
_DENIALS = ("after", "before")


@dataclass(frozen=True)
class _Mark:
    """A trigger: its kind, its first word, and the word after its last."""

    kind: str
    start: int
    end: int


@dataclass
class _Clause:
    """A part of a statement with one verb at most. `start` and `end` are numbers of words."""

    start: int
    end: int
    follows_phrase: bool = False  # begins with the object of a word such as "despite"
    marks: list[_Mark] = field(default_factory=list)


def read_words(statement: str) -> tuple[list[str], set[int]]:
    """The words of a statement in lower case, and the numbers of those that it denies. A known phrase is a word."""
    if "?" in statement:
        statement = _QUERY.sub("query ", statement)
    words = _join_phrases(_WORD.findall(statement))
    return words, find_denied("".join(map(_classify, words)))


def _join_phrases(words: list[str]) -> list[str]:
    begun = [
        (start, following[second])
        for start, (first, second) in enumerate(pairwise(words))
        if (following := _PHRASES.get(first)) and second in following
    ]
    joined, place = list[str](), 0
    for start, phrases in begun:
        for phrase in phrases if start >= place else ():
            if words[start : start + len(phrase)] == phrase:
                joined += [*words[place:start], " ".join(phrase)]
                place = start + len(phrase)
                break
    return joined + words[place:] if place else words


@lru_cache(2**16)
def has_content(word: str) -> bool:
    """True for a word that names a thing, a place or a quality, and not for one of grammar or of assertion."""
    return bool(_CONTENT.match(_classify(word)))


@lru_cache(2**16)
def _classify(token: str) -> str:
    """The class of a word: its own, that of its longest known beginning, or none."""
    if token in _CLASSES:
        return _CLASSES[token]
    for length in range(len(token), 2, -1):
        if (beginning := f"{token[:length]}*") in _CLASSES:
            return _CLASSES[beginning]
    if token.isdigit():
        return _CLASSES["ago"]
    return _CLASSES["so"] if token.endswith("ly") and not token.endswith("megaly") else "."


def find_denied(classes: str) -> set[int]:
    """Numbers of the words in the scope of a denial, from the classes of a statement's words."""
    if not _DENIAL.search(classes):
        return set()
    classes = _INSERTED.sub(lambda match: match[0].replace(",", "_"), classes)
    marks = [_Mark(str(match.lastgroup), *match.span()) for match in _MARKS.finditer(classes)]
    clauses = list(_split_clauses(classes, marks))
    denied: set[int] = set()
    for number, clause in enumerate(clauses):
        if _PAST.search(classes[clause.start : clause.end]):
            if _is_over(classes, clause, clauses):
                denied.update(range(clause.start, clause.end))
            if not any(mark.kind == "after" for mark in clause.marks):
                continue
        for index, mark in enumerate(clause.marks):
            scope = _scope(classes, clause, mark, clause.marks[index + 1 :])
            if scope is None:  # the subject is in the clause before: "was there but is gone"
                scope = range(clauses[number - 1].start, clauses[number - 1].end) if number else range(0)
            denied.update(scope)
    return denied


def _is_over(classes: str, clause: _Clause, clauses: Sequence[_Clause]) -> bool:
    """True if what a clause says of the past is not so now: nothing says that it is, or another clause denies it."""
    if any(mark.kind in _DENIALS for mark in clause.marks):
        return False
    others = [other for other in clauses if other is not clause]
    return "u" not in classes or any(
        mark.kind in _DENIALS or "N" in classes[other.start : other.end] for other in others for mark in other.marks
    )


def _split_clauses(classes: str, marks: Sequence[_Mark]) -> Iterator[_Clause]:
    """Clauses end at turns, and at the first joint between two verbs that have a subject each."""
    clause, verb = _Clause(0, len(classes)), None
    for mark in marks:
        if mark.kind == "break":
            clause.end = mark.start
            yield clause
            is_phrase = classes[mark.start] in "KP" or (clause.follows_phrase and clause.start == clause.end)
            clause, verb = _Clause(mark.end, len(classes), is_phrase), None
            continue
        if mark.kind in _VERBS:
            joint = verb and re.search("[,&]", classes[verb.end : mark.start])
            if verb and joint and _SUBJECT.search(classes, verb.end + joint.start(), mark.end):
                place = verb.end + joint.start()
                following = _Clause(place + 1, len(classes))
                following.marks = [other for other in clause.marks if other.start >= place]
                clause.marks = [other for other in clause.marks if other.start < place]
                clause.end = place
                yield clause
                clause = following
            verb = mark
        clause.marks.append(mark)
    yield clause


def _scope(classes: str, clause: _Clause, mark: _Mark, following: Sequence[_Mark]) -> range | None:
    """The words that a mark denies. A denial with nothing on its own side covers the other side, None for neither."""
    before, after = classes[clause.start : mark.start], classes[mark.end : clause.end]
    if mark.kind in ("own", "not"):
        return range(mark.start, mark.end)
    if mark.kind == "ask":
        return range(mark.end, mark.end + _length_to(after, ","))
    if mark.kind == "asked":
        return range(clause.start, mark.start)
    if mark.kind not in _DENIALS:
        return range(0)
    if _CONTENT.search(before if mark.kind == "after" else after):
        is_after = mark.kind == "after"
    elif mark.kind == "after":
        is_after = not _CONTENT.search(after) or after[0] == "d"
        if is_after:
            return range(0) if following else None
    else:
        is_after = bool(_CONTENT.search(before))
    if is_after:
        return range(_list_start(classes, clause, mark), mark.start)
    return range(mark.end, _list_end(classes, clause, mark, following))


def _list_end(classes: str, clause: _Clause, mark: _Mark, following: Sequence[_Mark]) -> int:
    """The end of the list that a denial opens: "no A, B or C", "no A, B was seen". Not B in "no A, B is large"."""
    verb = next((other for other in following if other.kind in _VERBS and _is_end(classes, mark, other)), None)
    covered = classes[mark.end : verb.start if verb else clause.end]
    is_phrase = clause.follows_phrase and "," not in classes[clause.start : mark.start]
    if is_phrase or (verb and _BEGINS_PHRASE.fullmatch(classes, clause.start, mark.end)):
        listed = _LISTED.match(covered)  # to the comma after a list, or to the first one
        return mark.end + (listed.end() if listed else _length_to(covered, ","))
    ends = _NEW_SUBJECT if verb and verb.kind == "seen" else _OTHER_SUBJECT
    if verb and (other := ends.search(covered)):
        return mark.end + other.end() - 1
    is_list = "|" in covered or (verb.kind == "seen" if verb else _is_list(classes, clause, mark, covered))
    return mark.end + (len(covered) if is_list else _length_to(covered, ",&"))


def _is_list(classes: str, clause: _Clause, mark: _Mark, covered: str) -> bool:
    """True if a denial without a verb covers all items: "A without B, C, D", not "resolution of A, B is unchanged"."""
    if classes[mark.start] in "rwZ":
        return "&" in covered
    return "&" in covered or mark.start == clause.start or (covered.count(",") > 1 and "d" not in covered)


def _is_end(classes: str, mark: _Mark, verb: _Mark) -> bool:
    """False for a verb with an object, which the denial covers too: "neither lung contains a nodule"."""
    return classes[verb.start] != "F" or bool(re.search("[,&]", classes[mark.end : verb.start]))


def _list_start(classes: str, clause: _Clause, mark: _Mark) -> int:
    """The start of the list that a denial closes: "A, B and C were not seen". Not A in "A there, B was not seen"."""
    covered = classes[clause.start : mark.start]
    if mark.kind == "before":  # with nothing to deny after it: "A is seen, B none"
        comma = covered.rfind(",")
        return clause.start + (0 if re.search("[&|]", covered[comma + 1 :]) else comma + 1)
    comma = covered.find(",") if clause.follows_phrase or covered[:1] in ("d", "p") else covered.rfind(",")
    is_list = not clause.follows_phrase and not re.match("[dp]", covered) and (
        "d" not in covered[:comma] or re.search("[&|]", covered[comma:])
    )  # fmt: skip
    return clause.start + (0 if is_list or comma < 0 else comma + 1)


def _length_to(classes: str, ends: str) -> int:
    return next((place for place, name in enumerate(classes) if name in ends), len(classes))
