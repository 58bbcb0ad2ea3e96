"""Model cards as the Hugging Face Hub shows them, for models trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def write_card(
    name: str, *, tags: Sequence[str], description: str, facts: Mapping[str, str], metrics: Mapping[str, str]
) -> str:
    """The card's text: description, a line for each fact, a table of the metrics."""
    return "\n".join(
        [
            "---",
            f"tags: [{', '.join(tags)}]",
            "---",
            f"# {name}",
            "",
            description,
            "",
            *(f"- {title}: {fact}" for title, fact in facts.items()),
            "",
            "| metric | value |",
            "|---|---|",
            *(f"| {metric} | {value} |" for metric, value in metrics.items()),
            "",
            "`metrics.parquet` holds the training's curve, a row a step. For research; not a medical device.",
            "",
        ]
    )


def describe_data(origin: Mapping[str, str], samples: str) -> str:
    """Source, revision and number of samples. `origin` may hold `source`, `revision` and `count_samples`."""
    revision = f", revision {origin['revision']}" if origin.get("revision") else ""
    return f"{origin.get('source') or 'a manifest'}{revision}; {origin.get('count_samples', 'some')} {samples}."
