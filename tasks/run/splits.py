"""Splits of the ingested data: what needs one says so where it is missing, as in a mirror of valid alone."""

from __future__ import annotations

from pathlib import Path

from ctclip_model.errors import MissingInputError
from warehouse import store

COUNTS = {
    "volumes": "select split, count(*), count(size_bytes) from current_volumes group by split order by split",
    "reports": "select split, count(*), count(*) from current_reports group by split order by split",
}


def require_split(data_root: Path, *splits: str | None, items: str = "volumes") -> None:
    """Raises `MissingInputError` if no ingested volume with a file, or no report, is of one of the splits.

    `items` is volumes or reports. The message names the splits that are there. A split of None stands for all.
    """
    counts = {name: (count, there) for name, count, there in store.query(data_root, COUNTS[items])}
    wanted = [counts[name] for name in counts if None in splits or name in splits]
    if any(there for _, there in wanted):
        return
    if not counts:
        raise MissingInputError(f"there are no {items} yet: run `ctclip ingest --source …` with a source that has them")
    names = f"the {' or '.join(map(str, splits))} split"
    if not wanted:
        others = ", ".join(f"{name} ({count})" for name, (count, _) in counts.items())
        raise MissingInputError(f"{names} is missing: the ingested {items} are of {others} alone")
    of_split = "" if None in splits else f" of {names}"
    count = sum(count for count, _ in wanted)
    raise MissingInputError(f"0 of {count} volumes{of_split} have a file in their source: `ctclip ingest` looks again")
