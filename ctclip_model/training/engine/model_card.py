"""The model card of what was trained here, as the Hugging Face Hub shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def write_card(
    name: str, *, tags: Sequence[str], description: str, facts: Mapping[str, str], metrics: Mapping[str, str]
) -> str:
    """What the model is, of which data, and how well it does."""
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
    """How many samples of which revision of which data set, as a training was told it."""
    revision = f", revision {origin['revision']}" if origin.get("revision") else ""
    return f"{origin.get('source') or 'a manifest'}{revision}; {origin.get('count_samples', 'some')} {samples}."
