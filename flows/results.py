"""Results that the demonstration shows at its end."""

from __future__ import annotations

from pathlib import Path

from ctclip_model.models.kinds import ENCODERS
from flows.display import console, print_rows
from warehouse import store

PROTOCOLS = list(dict.fromkeys(kind.facts.protocol for kind in ENCODERS))  # columns beside the abnormality


def show_results(folder: Path) -> None:
    """Prints the scores of the newest models, the page to open and queries to try next."""
    from ctclip_model.data.phantom import VISIBLE_ABNORMALITIES

    data_root = folder / "data"
    visible = {"abnormalities": list(VISIBLE_ABNORMALITIES)}
    found = store.query(data_root, store.load_sql(__package__, "newest_scores"), visible)
    if not found:
        return
    scores = {(abnormality, protocol): auroc for abnormality, protocol, auroc, _, _ in found}
    counts = {abnormality: counts for abnormality, _, _, *counts in found}
    rows = [
        (abnormality, *(_round(scores.get((abnormality, protocol))) for protocol in PROTOCOLS), *counts[abnormality])
        for abnormality in counts
    ]
    macros = [_mean([scores.get((abnormality, protocol)) for abnormality in counts]) for protocol in PROTOCOLS]
    console.print(f"\nAUROC on held-out phantom patients, for the {len(rows)} abnormalities that phantoms show\n")
    print_rows(("abnormality", *map(str, PROTOCOLS), "n_positive", "n"), [*rows, ("macro", *macros, None, None)])
    for (path,) in store.query(data_root, store.load_sql(__package__, "newest_page")):
        console.print(f"\nOpen  {data_root / path}")
    if (index := data_root / "reports" / "index.html").exists():
        console.print(f"Index {index}", soft_wrap=True)
    console.print(f'Try   ctclip sql --data-root {data_root} "select * from model_leaderboard"', soft_wrap=True)
    console.print(f'      ctclip sql --data-root {data_root} "select * from label_prevalence"', soft_wrap=True)
    console.print(f"      ctclip status --data-root {data_root}", soft_wrap=True)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _round(sum(known) / len(known)) if known else None


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
