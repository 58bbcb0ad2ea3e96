"""What a model reads of a report."""

from __future__ import annotations

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
