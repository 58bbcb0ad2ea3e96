"""Report texts as models read them."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from itertools import islice

DROPPED_CHARACTERS = "\"'()"
SECTIONS = ("findings", "impression")
MISSING = {"", "nan", "none", "null", "na", "nat"}  # letters and digits of cells that hold nothing, such as N/A or "-"
LONGEST_MISSING = max(map(len, MISSING))
NO_LETTERS = bytes(
    {*range(128)} - {*string.ascii_lowercase.encode(), *string.digits.encode()}
)  # ASCII of a report's hash
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def is_missing(text: str | None) -> bool:
    """Says whether a cell holds nothing: it is blank, has no letter or digit, or is a word such as nan, None or N/A."""
    return text is None or "".join(islice(filter(str.isalnum, text), LONGEST_MISSING + 1)).lower() in MISSING


def clean_report(findings: str | None, impression: str | None, sections: Sequence[str]) -> str:
    """Joins the chosen sections of a report, with nothing between them, as published.

    `sections` are "findings", "impression" or both, in order. "Not given." and the characters " ' ( ) are removed. A
    missing section is empty (the published code reads it as the word nan).
    """
    parts = {"findings": findings, "impression": impression}
    text = "".join(text for section in sections if (text := parts[section]) and not is_missing(text))
    for dropped in ("Not given.", *DROPPED_CHARACTERS):  # str.translate takes twice the time
        text = text.replace(dropped, "")
    return text.strip()


def reading_order(trained: Sequence[str] | None) -> Sequence[str]:
    """The sections of a report in the order of a model's training, for a model that is given whole reports.

    A model that was trained on one section, or in another program (None), reads them in the published order.
    """
    return trained if trained is not None and sorted(trained) == sorted(SECTIONS) else SECTIONS


def report_sha256(text: str) -> str:
    """A hash of a report's letters and digits: equal for copies that differ in spaces, punctuation or capitals."""
    return hashlib.sha256(text.lower().encode("ascii", "ignore").translate(None, NO_LETTERS)).hexdigest()


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, each with its full stop."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def report_sentences(findings: str | None, impression: str | None, sections: Sequence[str]) -> list[list[str]]:
    """Sentences of each section of a report. A section may have none."""
    return [split_sentences(clean_report(findings, impression, [section])) for section in sections]
