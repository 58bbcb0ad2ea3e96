"""HTML of a report page: self-contained, readable on a phone, in print, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tasks.report.charts import Points, line_chart, scatter_chart

if TYPE_CHECKING:  # examples need DuckDB, and the page of one's own CT does not
    from tasks.report.evidence import EvidenceFinding
    from tasks.report.examples import Example

Row = Mapping[str, Any]
MISSING = "\N{EN DASH}"
AXES = {
    "ROC": ("false positive rate", "recall"),
    "precision and recall": ("recall", "precision"),
    "calibration": ("predicted probability", "share with the label"),
}
INTERVALS = {
    "score": "score intervals with the jackknife's variance",
    "mover": "for the mean, distances of the labels' ends added up",
    "paired-t": "Student's test with the jackknife's correlation",
    "percentile": "bootstrap percentiles of an earlier version",
}
CHANCE = 0.5  # AUROC of guesses
PLANE_TITLE = "t-SNE of the scans' latents; scans with more abnormalities have stronger dots"


@dataclass(frozen=True)
class ForestRow:
    """A value with its interval: as numbers, and as percent of the width."""

    name: str
    value: float
    low: float | None
    high: float | None
    place: float
    interval: tuple[float, float] | None  # left end and length
    row: Row


@dataclass(frozen=True)
class Forest:
    """Values below each other with their intervals, and vertical lines (meaning, number, percent of the width)."""

    rows: Sequence[ForestRow]
    lines: Sequence[tuple[str, float, float]]


@dataclass(frozen=True)
class OperatingPoints:
    """Thresholds of an abnormality, and what they would decide."""

    points: Sequence[tuple[float, float, float]]  # (threshold, sensitivity, specificity), thresholds increasing
    chosen: float | None  # the threshold of the model's decisions
    count_positive: int
    count: int


@dataclass(frozen=True)
class PageFacts:
    """Content of a page. A row maps column names to values."""

    title: str
    headline: Sequence[tuple[str, str]]  # (figure, its meaning)
    origin: str = ""  # a sentence about what the model was made from
    published_macro: float | None = None  # macro AUROC of the published CT-CLIP on the same data set
    subgroups: Sequence[Row] = ()  # a row per kind and group
    operating_points: Mapping[str, OperatingPoints] = field(default_factory=dict)  # {abnormality: thresholds}
    leaderboard: Sequence[Row] = ()  # models of the data root, each by its own protocol
    published: Sequence[Row] = ()  # published results, and models of the data root on their cohorts
    published_elsewhere: Sequence[Row] = ()  # published results on other cohorts of the data set
    comparisons: Sequence[Row] = ()  # a row per other model
    against: str = ""  # model of the differences on the first screen
    differences: Sequence[Row] = ()  # a row per abnormality, against that model
    labels: Sequence[Row] = ()  # a row per abnormality
    few_patients: Sequence[str] = ()  # abnormalities that few patients have, or lack
    threshold_sources: Sequence[str] = ()  # data that chose the thresholds
    ci_methods: Sequence[str] = ()  # methods of the intervals of AUROC
    comparison_methods: Sequence[str] = ()
    curves: Mapping[str, Mapping[str, Points]] = field(default_factory=dict)  # {key of AXES: {abnormality: points}}
    training: Mapping[str, Points] = field(default_factory=dict)  # {phase: (samples, loss)}
    retrieval: Sequence[Row] = ()  # a row per task, with a value for each K, an integer key
    examples: Sequence[Example] = ()
    evidence: Sequence[EvidenceFinding] = ()
    evidence_note: str = ""  # a sentence on pictures that are left out
    projection: Sequence[tuple[float, float, float]] = ()  # (x, y, number of abnormalities)
    labellers: Sequence[Row] = ()  # a row per abnormality and labeller, against hand labels
    agreement: Sequence[Row] = ()  # a row per abnormality and labeller, against the scored labels
    scored_labels: str = "published labels"
    quality: Sequence[Row] = ()
    rejects: Sequence[Row] = ()
    provenance: Sequence[tuple[str, str]] = ()


def render_page(facts: PageFacts) -> str:
    """Renders a page. Every text is escaped."""
    environment = make_environment()
    environment.filters["describe_interval"] = lambda method: INTERVALS.get(method, method)
    charts = {
        name: {kind: _curve_chart(kind, name, lines[name]) for kind, lines in facts.curves.items() if name in lines}
        for name in facts.curves.get("ROC", {})  # an abnormality of one class has no curves
    }
    losses = {phase: _loss_chart(phase, points) for phase, points in facts.training.items() if points}
    columns = sorted({key for row in facts.retrieval for key in row if isinstance(key, int)})
    return environment.get_template("page.html").render(
        facts=facts, charts=charts, losses=losses, plane=scatter_chart(facts.projection, title=PLANE_TITLE),
        forest=make_forest(facts.labels, {"chance": CHANCE} | _published_line(facts)),
        differences=make_forest(facts.comparisons, {"no difference": 0.0}, name="other_model_id", value="difference"),
        paired=make_forest(facts.differences, {"no difference": 0.0}, value="difference"),
        subgroups=make_forest(facts.subgroups, {"chance": CHANCE}, name="group"),
        retrieval_columns=[(k, f"K = {k}") for k in columns],
    )  # fmt: skip


def make_environment() -> Environment:
    """The templates of this room. Every text is escaped."""
    environment = Environment(
        loader=PackageLoader("tasks.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = _number
    return environment


def make_forest(
    rows: Sequence[Row], lines: Mapping[str, float], *, name: str = "abnormality", value: str = "auroc"
) -> Forest:
    """Places of the rows' values, intervals and of vertical lines, in percent of the common width.

    Rows without a value are left out.
    """
    known = [row for row in rows if row[value] is not None]
    ends = [end for row in known for end in (row[value], row["ci_low"], row["ci_high"]) if end is not None]
    low, high = min([*ends, *lines.values()]), max([*ends, *lines.values()])
    margin = 0.03 * ((high - low) or 1)

    def place(number: float) -> float:
        return round(100 * (number - low + margin) / (high - low + 2 * margin), 2)

    def interval(row: Row) -> tuple[float, float] | None:
        if row["ci_low"] is None or row["ci_high"] is None:
            return None
        return place(row["ci_low"]), round(place(row["ci_high"]) - place(row["ci_low"]), 2)

    drawn = [
        ForestRow(str(row[name]), row[value], row["ci_low"], row["ci_high"], place(row[value]), interval(row), row)
        for row in known
    ]
    return Forest(drawn, [(label, number, place(number)) for label, number in lines.items()])


def _published_line(facts: PageFacts) -> dict[str, float]:
    return {} if facts.published_macro is None else {"published CT-CLIP, macro": facts.published_macro}


def _curve_chart(kind: str, name: str, points: Points) -> Markup:
    x_label, y_label = AXES[kind]
    return line_chart(
        {name: points}, title=f"{kind} curve of {name}", x_label=x_label, y_label=y_label, x_range=(0, 1),
        y_range=(0, 1), has_diagonal=kind != "precision and recall",
    )  # fmt: skip


def _loss_chart(phase: str, points: Points) -> Markup:
    title = f"loss in the {phase} phase, from {points[0][1]:.3f} to {points[-1][1]:.3f}"
    return line_chart({phase: points}, title=title, x_label="samples", y_label="loss")


def _number(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) else str(value)
