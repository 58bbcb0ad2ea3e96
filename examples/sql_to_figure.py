"""SQL to a figure: how often each abnormality is stated in the reports of a split, as bars in an SVG file.

python examples/sql_to_figure.py data/warehouse.duckdb valid prevalence.svg
"""

import sys
from html import escape
from pathlib import Path

import duckdb

QUERY = """
select abnormality, prevalence, n_positive, n
from label_prevalence
where labeller_id = 'published' and split = $split
order by prevalence desc
"""
LABELS, BARS, ROW = 280, 400, 26  # pixels: width of the names, width of a prevalence of 1, height of a bar's row


def main(warehouse: str, split: str, picture: str) -> None:
    """Draws a bar for each abnormality, longest first."""
    with duckdb.connect(warehouse, read_only=True) as connection:
        rows = connection.execute(QUERY, {"split": split}).fetchall()
    parts = [
        f'<text x="{LABELS - 8}" y="{line * ROW + 18}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{LABELS}" y="{line * ROW + 4}" width="{share * BARS:.1f}" height="{ROW - 8}" fill="#1f78b4"/>'
        f'<text x="{LABELS + share * BARS + 8:.1f}" y="{line * ROW + 18}">{share:.0%} ({positive} of {count})</text>'
        for line, (name, share, positive, count) in enumerate(rows)
    ]
    size = f"0 0 {LABELS + BARS + 160} {len(rows) * ROW}"
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="14">'
    Path(picture).write_text("\n".join([frame, *parts, "</svg>"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
