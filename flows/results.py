"""What the demonstration shows at its end."""

from __future__ import annotations

from pathlib import Path

from ctclip_model.models.kinds import ENCODERS
from flows.display import console, print_rows
from warehouse import store

PROTOCOLS = tuple(kind.facts.protocol for kind in ENCODERS)  # columns beside the abnormality
_COLUMNS = ", ".join(f"round(max(value) filter (protocol = '{name}'), 3) as \"{name}\"" for name in PROTOCOLS)
# the newest model of each protocol, side by side
_SCORES = f"""
with newest as (
    select protocol, max_by(model_id, run_id) as model_id
    from current_metrics
    where split = 'valid'
    group by protocol
)
select
    abnormality, {_COLUMNS}, max(n_positive) as n_positive, max(n) as n
from current_metrics
join newest using (protocol, model_id)
where split = 'valid' and unit = 'scan' and metric = 'auroc' and list_contains($visible, abnormality)
group by abnormality
order by abnormality
"""


def show_results(folder: Path) -> None:
    """Prints the scores of the newest models, the page to open and the SQL to try next."""
    from ctclip_model.data.phantom import VISIBLE_ABNORMALITIES

    data_root = folder / "data"
    with store.read(data_root) as connection:
        answer = connection.execute(_SCORES, {"visible": list(VISIBLE_ABNORMALITIES)})
        columns = [column[0] for column in answer.description or ()]
        rows = answer.fetchall()
        page = connection.execute(
            "select pages.path from current_pages as pages join current_models using (model_id) "
            "where kind = 'ct-clip' order by pages.run_id desc limit 1"
        ).fetchone()
    if not rows:
        return
    console.print(f"\nAUROC on held-out phantom patients, the {len(rows)} abnormalities that phantoms show\n")
    macros = [_mean([row[place] for row in rows]) for place in range(1, 1 + len(PROTOCOLS))]
    print_rows(columns, [*rows, ("macro", *macros, None, None)])
    if page:
        console.print(f"\nOpen  {data_root / page[0]}")
    console.print(f'Try   ctclip sql --data-root {data_root} "select * from model_leaderboard"', soft_wrap=True)
    console.print(f'      ctclip sql --data-root {data_root} "select * from label_prevalence"', soft_wrap=True)
    console.print(f"      ctclip status --data-root {data_root}", soft_wrap=True)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 3) if known else None
