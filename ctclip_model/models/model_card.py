"""Model cards as the Hugging Face Hub shows them, for models trained here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ctclip_model.models.held_out import HeldOut


def write_card(
    name: str,
    *,
    tags: Sequence[str],
    description: str,
    facts: Mapping[str, str],
    metrics: Mapping[str, str],
    held_out: HeldOut | None = None,
) -> str:
    """The card's text: description, a line for each fact, a table of the metrics with the held-out scores.

    A model that does not beat its baselines has a warning before the facts.
    """
    scores = (
        {}
        if held_out is None
        else {held_out.metric: held_out.score}
        | {f"the same, {baseline}": score for baseline, score in held_out.baselines.items()}
    )
    warning = [f"**Warning: this model {held_out.warning}.**", ""] if held_out and held_out.warning else []
    return "\n".join(
        [
            "---",
            f"tags: [{', '.join(tags)}]",
            "---",
            f"# {name}",
            "",
            description,
            "",
            *warning,
            *(f"- {title}: {fact}" for title, fact in facts.items()),
            "",
            "| metric | value |",
            "|---|---|",
            *(f"| {metric} | {value} |" for metric, value in metrics.items()),
            *(f"| {metric} | {score:.3f} |" for metric, score in scores.items()),
            "",
            "`metrics.parquet`, if there is one, holds the training's curve, a row a step. For research; not a medical "
            "device.",
            "",
        ]
    )


def set_section(card: str, title: str, text: str) -> str:
    """The card with `text` below the heading `## title`. It replaces that section, or comes last."""
    section = f"## {title}\n\n{text.strip()}\n"
    found = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL).search(card)
    if found is None:
        return f"{card.rstrip()}\n\n{section}"
    rest = card[found.end() :]
    return card[: found.start()] + section + (f"\n{rest}" if rest else "")


def split_card(card: str) -> tuple[str, str]:
    """A card's front matter in YAML, without its rules, and the text behind it."""
    found = re.match(r"---\n(.*?)^---\n", card, re.MULTILINE | re.DOTALL)
    return (found[1], card[found.end() :]) if found else ("", card)


def describe_data(origin: Mapping[str, str], samples: str) -> str:
    """Source, revision and number of samples. `origin` may hold `source`, `revision` and `count_samples`."""
    revision = f", revision {origin['revision']}" if origin.get("revision") else ""
    return f"{origin.get('source') or 'a manifest'}{revision}; {origin.get('count_samples', 'some')} {samples}."
