"""Layouts of a report's text that leave its language as it is, and sentences of known truth."""

from __future__ import annotations

import hashlib
import html
import re
import textwrap
import tomllib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from numpy.random import Generator

SENTENCES = Path(__file__).parent / "data/stress_sentences.toml"
COLUMNS = 80


def wrap(text: str, rng: Generator) -> str:
    return textwrap.fill(text, COLUMNS)


def wrap_with_hyphens(text: str, rng: Generator) -> str:
    """Lines of 80 columns. A word that does not fit is cut with a hyphen where three letters remain on each side."""
    lines, line = [], ""
    for word in text.split():
        room = COLUMNS - len(line) - 2
        if len(line) + len(word) >= COLUMNS and word.isalpha() and 3 <= room <= len(word) - 3:
            lines.append(f"{line} {word[:room]}-".strip())
            line = word[room:]
        elif len(line) + len(word) >= COLUMNS:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def double_spaces(text: str, rng: Generator) -> str:
    return re.sub(" ", lambda match: "  " if rng.random() < 0.2 else " ", text)


def turkish_capitals(text: str, rng: Generator) -> str:
    return text.replace("i", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}").upper()


def run_on_lower_case(text: str, rng: Generator) -> str:
    return re.sub(r"(?<=[.!?])\s+", "", text.lower())


def markup(text: str, rng: Generator) -> str:
    """HTML: a line end after each sentence, and hard spaces."""
    text = re.sub(r"(?<=[.!?])\s+", "<br/>", html.escape(text))
    return "<p>" + re.sub(" ", lambda match: "&nbsp;" if rng.random() < 0.2 else " ", text) + "</p>"


def wrapped_markup(text: str, rng: Generator) -> str:
    return wrap(text, rng).replace("\n", "<br>\n")


def soft_hyphens(text: str, rng: Generator) -> str:
    return re.sub(r"(?<=[a-z]{3})(?=[a-z]{3})", lambda match: "\N{SOFT HYPHEN}" if rng.random() < 0.2 else "", text)


def zero_width_spaces(text: str, rng: Generator) -> str:
    return soft_hyphens(text, rng).replace("\N{SOFT HYPHEN}", "\N{ZERO WIDTH SPACE}")


def ligatures(text: str, rng: Generator) -> str:
    return text.replace("fi", "\N{LATIN SMALL LIGATURE FI}").replace("fl", "\N{LATIN SMALL LIGATURE FL}")


def full_width(text: str, rng: Generator) -> str:
    return text.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})


def decomposed(text: str, rng: Generator) -> str:
    return unicodedata.normalize("NFD", text.replace("i", "\N{LATIN SMALL LETTER I WITH DIAERESIS}"))


FORMS: dict[str, Callable[[str, Generator], str]] = {
    "as given": lambda text, rng: text,
    "wrapped at 80 columns": wrap,
    "wrapped, words cut with hyphens": wrap_with_hyphens,
    "wrapped, Windows line ends": lambda text, rng: wrap(text, rng).replace("\n", "\r\n"),
    "double spaces at random": double_spaces,
    "capitals": lambda text, rng: text.upper(),
    "Turkish capitals": turkish_capitals,
    "lower case": lambda text, rng: text.lower(),
    "lower case, no space after stops": run_on_lower_case,
    "dotless i": lambda text, rng: text.replace("i", "\N{LATIN SMALL LETTER DOTLESS I}"),
    "HTML": markup,
    "HTML, wrapped": wrapped_markup,
    "a sentence per line": lambda text, rng: re.sub(r"(?<=[.!?])\s+", "\n", text),
    "soft hyphens": soft_hyphens,
    "zero-width spaces": zero_width_spaces,
    "ligatures": ligatures,
    "full-width letters": full_width,
    "decomposed letters": lambda text, rng: unicodedata.normalize(
        "NFD", text.replace("i", "\N{LATIN SMALL LETTER I WITH DIAERESIS}")
    ),
    "capital first letters, wrapped": lambda text, rng: wrap(text.title(), rng),
    "capitals, wrapped": lambda text, rng: wrap(text.upper(), rng),
    "indented lines and tabs": lambda text, rng: textwrap.indent(wrap(text, rng), "    ").replace(" and ", "\tand\t"),
}


@dataclass(frozen=True)
class Sentence:
    """A sentence of known truth, of the half that rules are tuned on or of the other."""

    phenomenon: str
    text: str
    present: tuple[str, ...]
    absent: tuple[str, ...]
    is_seen: bool


def read_sentences() -> Iterator[Sentence]:
    """All sentences. Of one phenomenon and truth, every second by SHA-256 is seen, except where `seen` decides."""
    for phenomenon, items in tomllib.loads(SENTENCES.read_text("utf-8")).items():
        alike = defaultdict(list)
        for item in items:
            alike["present" in item, "absent" in item].append(item)
        for group in alike.values():
            ordered = sorted(group, key=lambda item: hashlib.sha256(item["text"].encode()).hexdigest())
            for place, item in enumerate(ordered):
                yield Sentence(
                    phenomenon, item["text"], tuple(item.get("present", ())), tuple(item.get("absent", ())),
                    is_seen=item.get("seen", place % 2 == 0),
                )  # fmt: skip
