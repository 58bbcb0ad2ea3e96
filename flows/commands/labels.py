"""Commands for label sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.display import console, print_json
from flows.options import DataRoot, Json
from tasks.settings import DATA_ROOT

if TYPE_CHECKING:
    from ctclip_model.data.label_sets import LabelSet


def findings(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Label sets to check, as TOML. Default: those of the data root."),
    ] = None,
    data_root: DataRoot = DATA_ROOT,
    as_json: Json = False,
) -> None:
    """List and check label sets: findings and their prompts.

    A label set is a TOML file with a `name`, and a table `[[findings]]` with `name`, `present` and `absent` for each
    finding.
    """
    from ctclip_model.data.label_sets import read_label_set

    sets = [read_label_set(path) for path in files or []] or _list_sets(data_root)
    if as_json:
        print_json([_describe(one) for one in sets])
        return
    for one in sets:
        _print_set(one)


def import_labels(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Labels by scan or volume: .csv or .parquet.")],
    name: Annotated[str, typer.Option(help="Name of these labels, for --labels of other commands.")],
    data_root: DataRoot = DATA_ROOT,
    findings: Annotated[
        Path | None, typer.Option(help="Label set of the file's findings, as TOML. Default: the 18 abnormalities.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import labels of scans from a file.

    The file is wide (a column for each finding) or long (columns finding and value). A value is 0, 1, a probability, or
    -1 or blank for unknown. Unknown names, findings and values are rejects. Importing a name again replaces its labels.
    """
    from ctclip_model.data.label_sets import CT_RATE_18, read_label_set
    from tasks.labels import import_labels as importing

    label_set = CT_RATE_18 if findings is None else read_label_set(findings)
    done = importing.import_labels(data_root, file, name, label_set)
    if as_json:
        print_json(done.as_json())
        return
    if not done.is_new:
        console.print(f"{name} is there already: {done.count_labels:,} labels of {done.count_scans:,} scans")
        return
    console.print(
        f"{name}: {done.count_labels:,} labels ({done.count_positive:,} positive) of {done.count_scans:,} scans, set "
        f"{done.label_set}; {done.count_changed:,} scans changed",
        soft_wrap=True,
    )
    if done.count_rejected:
        query = f"select * from open_rejects where stage = 'import-labels' and variant = '{name}'"
        console.print(f'{done.count_rejected:,} rejected: {done.rejected}. See: ctclip sql "{query}"', soft_wrap=True)


def _list_sets(data_root: Path) -> list[LabelSet]:
    """The built-in label set, and those that were imported into the data root."""
    from ctclip_model.data.label_sets import CT_RATE_18
    from tasks.labels.label_sources import read_recorded_sets
    from warehouse import store

    is_there = (data_root / store.WAREHOUSE_FILE).exists()
    return [*read_recorded_sets(data_root).values()] if is_there else [CT_RATE_18]


def _describe(label_set: LabelSet) -> dict[str, object]:
    rows = [{"name": one.name, "present": one.present, "absent": one.absent} for one in label_set.findings]
    return {"name": label_set.name, "fingerprint": label_set.fingerprint, "findings": rows}


def _print_set(label_set: LabelSet) -> None:
    from rich.table import Table
    from rich.text import Text

    origin = ", built in" if label_set.is_built_in else ""
    console.print(Text(f"{label_set.name}: {len(label_set)} findings{origin}", style="bold"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("finding", "prompt of presence", "prompt of absence"):
        table.add_column(heading, overflow="fold")
    for one in label_set.findings:
        table.add_row(Text(one.name), Text(one.present), Text(one.absent))
    console.print(table)
