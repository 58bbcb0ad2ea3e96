"""What a model reads of a report."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

DROPPED_CHARACTERS = str.maketrans("", "", "\"'()")
SECTIONS = ("findings", "impression")


def clean_report(findings: str | None, impression: str | None, sections: Sequence[str]) -> str:
    """The text that a model reads of a report: the chosen sections, joined with nothing between, as published.

    `sections` names them in order, of "findings" and "impression". "Not given." and the characters " ' ( ) go; a
    missing section is empty (the published code reads it as the word nan).
    """
    parts = {"findings": findings, "impression": impression}
    text = "".join(parts[section] or "" for section in sections)
    return text.replace("Not given.", "").translate(DROPPED_CHARACTERS).strip()


def report_sha256(text: str) -> str:
    """By which copies of a report are known, whatever became of their spaces, marks and capitals on the way."""
    return hashlib.sha256(re.sub("[^a-z0-9]+", "", text.lower()).encode()).hexdigest()


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each with its full stop."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def report_sentences(findings: str | None, impression: str | None, sections: Sequence[str]) -> list[list[str]]:
    """The sentences of each of a report's sections; a section may have none."""
    return [split_sentences(clean_report(findings, impression, [section])) for section in sections]
