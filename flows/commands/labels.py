"""Commands for label sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.display import console, print_json
from flows.options import Json

if TYPE_CHECKING:
    from ctclip_model.data.label_sets import LabelSet


def findings(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Label sets to check, as TOML. Default: the built-in one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List and check label sets: findings and their prompts.

    A label set is a TOML file with a `name`, and a table `[[findings]]` with `name`, `present` and `absent` for each
    finding.
    """
    from ctclip_model.data.label_sets import CT_RATE_18, read_label_set

    sets = [read_label_set(path) for path in files or []] or [CT_RATE_18]
    if as_json:
        print_json([_describe(one) for one in sets])
        return
    for one in sets:
        _print_set(one)


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
