"""Model cards as the Hugging Face Hub shows them, for models trained here."""

from __future__ import annotations

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


def describe_data(origin: Mapping[str, str], samples: str) -> str:
    """Source, revision and number of samples. `origin` may hold `source`, `revision` and `count_samples`."""
    revision = f", revision {origin['revision']}" if origin.get("revision") else ""
    return f"{origin.get('source') or 'a manifest'}{revision}; {origin.get('count_samples', 'some')} {samples}."
