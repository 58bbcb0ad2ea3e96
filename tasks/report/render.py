"""Facts in, one HTML file out: no outside request, readable on a phone, in print, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tasks.report.charts import Points, line_chart, scatter_chart
from tasks.report.examples import Example

Row = Mapping[str, Any]
MISSING = "\N{EN DASH}"
AXES = {
    "ROC": ("false positive rate", "recall"),
    "precision and recall": ("recall", "precision"),
    "calibration": ("predicted probability", "share with the label"),
}
PLANE_TITLE = "t-SNE of the volumes' latents, stronger the more labels a scan has"


@dataclass(frozen=True)
class PageFacts:
    """Everything that a page says; rows are mappings of the warehouse's columns."""

    title: str
    headline: Sequence[tuple[str, str]]  # (figure, what it is)
    leaderboard: Sequence[Row] = ()  # ours, each by its own protocol
    published: Sequence[Row] = ()  # ours by the published protocol, and the printed ones
    comparisons: Sequence[Row] = ()  # with each other model
    labels: Sequence[Row] = ()  # a row an abnormality
    curves: Mapping[str, Mapping[str, Points]] = field(default_factory=dict)  # by a key of AXES and abnormality
    training: Mapping[str, Points] = field(default_factory=dict)  # by phase: (samples, loss)
    retrieval: Sequence[Row] = ()
    examples: Sequence[Example] = ()
    projection: Sequence[tuple[float, float, float]] = ()  # x, y, number of labels
    labellers: Sequence[Row] = ()  # a row an abnormality, against hand labels
    agreement: Sequence[Row] = ()
    quality: Sequence[Row] = ()
    rejects: Sequence[Row] = ()
    provenance: Sequence[tuple[str, str]] = ()


def render_page(facts: PageFacts) -> str:
    """The page; every text in it is escaped."""
    environment = Environment(
        loader=PackageLoader("tasks.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = _number
    charts = {
        name: {kind: _curve_chart(kind, name, lines[name]) for kind, lines in facts.curves.items() if name in lines}
        for name in facts.curves.get("ROC", {})  # a label of one class has none, and nothing to calibrate
    }
    losses = {phase: _loss_chart(phase, points) for phase, points in facts.training.items() if points}
    return environment.get_template("page.html").render(
        facts=facts, charts=charts, losses=losses, plane=scatter_chart(facts.projection, title=PLANE_TITLE)
    )  # fmt: skip


def _curve_chart(kind: str, name: str, points: Points) -> Markup:
    x_label, y_label = AXES[kind]
    return line_chart(
        {name: points}, title=f"{kind} curve of {name}", x_label=x_label, y_label=y_label, x_range=(0, 1),
        y_range=(0, 1), has_diagonal=kind != "precision and recall",
    )  # fmt: skip


def _loss_chart(phase: str, points: Points) -> Markup:
    title = f"loss of the {phase} phase, {points[0][1]:.3f} at first, {points[-1][1]:.3f} at last"
    return line_chart({phase: points}, title=title, x_label="samples", y_label="loss")


def _number(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) else str(value)
