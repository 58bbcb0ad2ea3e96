"""Line and scatter charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
Range = tuple[float, float]

WIDTH, HEIGHT = 320, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 42  # margins of a line chart
PLANE_SIDE, PLANE_MARGIN = 600, 8  # side and margin of a scatter chart
LARGEST_PLAIN = 1000  # ticks from here on have no decimals


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: Range | None = None,
    y_range: Range | None = None,
    has_diagonal: bool = False,
) -> Markup:
    """Draws up to four series in one chart. Ranges default to the extent of the points.

    `title` is the chart's description for screen readers.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return Markup("")
    x_low, x_high = x_range or _extent([x for x, _ in points])
    y_low, y_high = y_range or _extent([y for _, y in points])

    def to_svg(x: float, y: float) -> str:
        svg_x = LEFT + (WIDTH - LEFT - RIGHT) * _share(x, x_low, x_high)
        svg_y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(y, y_low, y_high)
        return f"{svg_x:.1f},{svg_y:.1f}"

    edges = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM, x_low, x_high, y_low, y_high)
    frame = " ".join(f"{edge:g}" for edge in edges)  # the page's script reads values from it
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" data-frame="{frame}">',
        f'<path class="axis" d="M{LEFT},{TOP} V{HEIGHT - BOTTOM} H{WIDTH - RIGHT}"/>',
        f'<text x="{LEFT}" y="{HEIGHT - BOTTOM + 16}">{_tick(x_low)}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM + 16}" text-anchor="end">{_tick(x_high)}</text>',
        f'<text x="{LEFT - 4}" y="{HEIGHT - BOTTOM}" text-anchor="end">{_tick(y_low)}</text>',
        f'<text x="{LEFT - 4}" y="{TOP + 10}" text-anchor="end">{_tick(y_high)}</text>',
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(14 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    if has_diagonal:
        parts.append(f'<polyline class="chance" points="{to_svg(x_low, y_low)} {to_svg(x_high, y_high)}"/>')
    for number, (name, line) in enumerate(series.items()):
        path = " ".join(to_svg(x, y) for x, y in line)
        parts.append(f'<polyline class="line line-{number}" points="{path}"><title>{escape(name)}</title></polyline>')
    return Markup("".join(parts) + "</svg>")


def scatter_chart(points: Sequence[tuple[float, float, float]], *, title: str) -> Markup:
    """Draws points (x, y, shade) without axes. A greater shade gives a stronger colour."""
    if not points:
        return Markup("")
    xs, ys, shades = zip(*points, strict=True)
    x_range, y_range, largest_shade = _extent(xs), _extent(ys), max(shades) or 1
    dots = "".join(
        f'<circle cx="{_plane(x, x_range):.0f}" cy="{_plane(y, y_range):.0f}" r="4" '
        f'fill-opacity="{0.15 + 0.8 * float(shade) / float(largest_shade):.2f}"/>'
        for x, y, shade in points
    )
    return Markup(f'<svg viewBox="0 0 {PLANE_SIDE} {PLANE_SIDE}" role="img" aria-label="{escape(title)}">{dots}</svg>')


def _plane(value: float, extent: Range) -> float:
    return PLANE_MARGIN + (PLANE_SIDE - 2 * PLANE_MARGIN) * _share(value, *extent)


def _extent(values: Sequence[float]) -> Range:
    return min(values), max(values)


def _share(value: float, low: float, high: float) -> float:
    """Share of the way from low to high."""
    return (value - low) / ((high - low) or 1)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= LARGEST_PLAIN else f"{value:.3g}"
