"""Facts in, one HTML file out: no outside request, readable on a phone, in print, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tasks.page.charts import Points, line_chart

Row = Mapping[str, Any]
MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class PageFacts:
    """Everything that a page says; rows are mappings of the warehouse's columns."""

    title: str
    headline: Sequence[tuple[str, str]]  # (figure, what it is)
    leaderboard: Sequence[Row] = ()
    labels: Sequence[Row] = ()  # a row an abnormality
    roc: Mapping[str, Points] = field(default_factory=dict)  # by abnormality
    training: Mapping[str, Points] = field(default_factory=dict)  # by phase: (samples, loss)
    retrieval: Sequence[Row] = ()
    agreement: Sequence[Row] = ()
    quality: Sequence[Row] = ()
    rejects: Sequence[Row] = ()
    provenance: Sequence[tuple[str, str]] = ()


def render_page(facts: PageFacts) -> str:
    """The page; every text in it is escaped."""
    environment = Environment(
        loader=PackageLoader("tasks.page", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = _number
    charts = {
        name: line_chart(
            {name: points}, title=f"ROC curve of {name}", x_label="false positive rate", y_label="recall",
            x_range=(0, 1), y_range=(0, 1), has_diagonal=True,
        )
        for name, points in facts.roc.items()
    }  # fmt: skip
    losses = {phase: _loss_chart(phase, points) for phase, points in facts.training.items() if points}
    return environment.get_template("page.html").render(facts=facts, charts=charts, losses=losses)


def _loss_chart(phase: str, points: Points) -> Markup:
    title = f"loss of the {phase} phase, {points[0][1]:.3f} at first, {points[-1][1]:.3f} at last"
    return line_chart({phase: points}, title=title, x_label="samples", y_label="loss")


def _number(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) else str(value)
