"""What the demonstration shows at its end."""

from __future__ import annotations

from pathlib import Path

from flows.display import console, print_rows
from warehouse import store

_SCORES = """
select abnormality, round(value, 3) as auroc, round(ci_low, 3) as ci_low, round(ci_high, 3) as ci_high, n_positive, n
from current_metrics
where model_id = $model_id and metric = 'auroc' and (abnormality = 'macro' or list_contains($visible, abnormality))
order by abnormality = 'macro', abnormality
"""


def show_results(folder: Path) -> None:
    """Prints the scores of the newest model, the page to open and the SQL to try next."""
    from ctclip_model.data.phantom import VISIBLE_ABNORMALITIES

    data_root = folder / "data"
    with store.read(data_root) as connection:
        newest = connection.execute("select model_id from current_metrics order by run_id desc limit 1").fetchone()
        if newest is None:
            return
        answer = connection.execute(_SCORES, {"model_id": newest[0], "visible": list(VISIBLE_ABNORMALITIES)})
        columns = [column[0] for column in answer.description or ()]
        rows = answer.fetchall()
        page = connection.execute("select path from current_pages order by run_id desc limit 1").fetchone()
    visible = [row[1] for row in rows if row[0] != "macro" and row[1] is not None]
    console.print(f"\nZero-shot AUROC of [bold]{newest[0]}[/bold] on held-out phantom patients\n")
    print_rows(columns, [row for row in rows if row[0] != "macro"])
    if visible:
        macro = sum(visible) / len(visible)
        console.print(f"\nmacro over the {len(visible)} abnormalities that phantoms show: {macro:.3f}")
    if page:
        console.print(f"\nOpen  {data_root / page[0]}")
    console.print(f'Try   ctclip sql --data-root {data_root} "select * from model_leaderboard"', soft_wrap=True)
    console.print(f'      ctclip sql --data-root {data_root} "select * from label_prevalence"', soft_wrap=True)
    console.print(f"      ctclip status --data-root {data_root}", soft_wrap=True)
