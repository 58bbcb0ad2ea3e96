"""Line charts as inline SVG, coloured by the page's own style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 320, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 42  # margins


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    has_diagonal: bool = False,
) -> Markup:
    """One chart of up to four series; `title` is what a screen reader says of it."""
    points = [point for line in series.values() for point in line]
    if not points:
        return Markup("")
    x_low, x_high = x_range or (min(x for x, _ in points), max(x for x, _ in points))
    y_low, y_high = y_range or (min(y for _, y in points), max(y for _, y in points))

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / ((x_high - x_low) or 1)
        down = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_low) / ((y_high - y_low) or 1)
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<path class="axis" d="M{LEFT},{TOP} V{HEIGHT - BOTTOM} H{WIDTH - RIGHT}"/>',
        f'<text x="{LEFT}" y="{HEIGHT - BOTTOM + 16}">{_tick(x_low)}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM + 16}" text-anchor="end">{_tick(x_high)}</text>',
        f'<text x="{LEFT - 4}" y="{HEIGHT - BOTTOM}" text-anchor="end">{_tick(y_low)}</text>',
        f'<text x="{LEFT - 4}" y="{TOP + 10}" text-anchor="end">{_tick(y_high)}</text>',
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(14 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    if has_diagonal:
        parts.append(f'<polyline class="chance" points="{place(x_low, y_low)} {place(x_high, y_high)}"/>')
    for number, (name, line) in enumerate(series.items()):
        path = " ".join(place(x, y) for x, y in line)
        parts.append(f'<polyline class="line line-{number}" points="{path}"><title>{escape(name)}</title></polyline>')
    return Markup("".join(parts) + "</svg>")


def scatter_chart(points: Sequence[tuple[float, float, float]], *, title: str) -> Markup:
    """Points (x, y, shade) on a plane without axes; the greater its shade, the stronger a point's colour."""
    if not points:
        return Markup("")
    xs, ys, shades = zip(*points, strict=True)
    side, margin = 600, 8

    def place(value: float, values: Sequence[float]) -> float:
        return margin + (side - 2 * margin) * (value - min(values)) / ((max(values) - min(values)) or 1)

    most = max(shades) or 1
    bounds_x, bounds_y = (min(xs), max(xs)), (min(ys), max(ys))
    dots = "".join(
        f'<circle cx="{place(x, bounds_x):.0f}" cy="{place(y, bounds_y):.0f}" r="4" '
        f'fill-opacity="{0.15 + 0.8 * float(shade) / float(most):.2f}"/>'
        for x, y, shade in points
    )
    return Markup(f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="{escape(title)}">{dots}</svg>')


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
