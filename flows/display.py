"""Output of the command line: progress on stderr, results on stdout."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from tasks.run.progress import LogReporter, format_rate

PIPE_WIDTH = 2000  # columns of output into a pipe, which is never folded
WIDE = 110  # columns from which on there is room for a long bar
FOLDED = 13  # columns that a folded last column keeps at least

console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


class CountColumn(ProgressColumn):
    """Units done, of all."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{task.total:.0f}" if task.fields["unit"] else "", justify="right")


class RateColumn(ProgressColumn):
    """Units done per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(format_rate(speed) if speed else "", justify="right")


class RichReporter:
    """Progress bars on stderr. Only the note and the bar give way on a narrow screen."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        note = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self.progress = Progress(
            TextColumn("{task.description:>14}"), BarColumn(24 if console.width >= WIDE else 8), CountColumn(),
            TextColumn("{task.fields[unit]}"), RateColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", table_column=note), console=console, expand=True,
        )  # fmt: skip
        self.bars: dict[str, TaskID] = {}  # pieces of work
        self.totals: dict[str, int] = {}
        self.opened: dict[str, TaskID] = {}  # stages that have counted nothing yet

    def __enter__(self) -> RichReporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars or self.opened:  # stopping without a bar prints an empty line
            self.progress.stop()

    def open(self, stage: str) -> None:
        self.progress.start()
        self.opened[stage] = self.progress.add_task(stage, total=None, unit="", note="")

    def start(self, work: str, total: int, unit: str) -> None:
        if work in self.opened:
            self.progress.remove_task(self.opened.pop(work))
        self.progress.start()
        self.totals[work] = total
        self.bars[work] = self.progress.add_task(work, total=total, unit=unit, note="")

    def update(self, work: str, done: int, note: str) -> None:
        self.totals[work] = max(self.totals[work], done)  # a total may be an estimate
        self.progress.update(self.bars[work], completed=done, total=self.totals[work], note=note)

    def end(self, work: str) -> None:
        self.progress.stop_task(self.bars[work])

    def close(self, stage: str) -> None:
        if stage in self.opened:  # it counted nothing
            bar = self.opened.pop(stage)
            self.progress.update(bar, total=1, completed=1)
            self.progress.stop_task(bar)


class PlainReporter(LogReporter):
    """Plain lines on stderr, for a screen that is no terminal."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Prints JSON on stdout."""
    sys.stdout.write(json.dumps(_finite(value), default=str, allow_nan=False) + "\n")


def print_summaries(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line for each stage run: its work and its detail."""
    table = Table(box=None, pad_edge=False)
    for column, justify in (
        ("stage", "left"),
        ("done", "right"),
        ("rejected", "right"),
        ("seconds", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for summary in summaries:
        is_idle = not summary["done"] and not summary["rejected"] and not summary["detail"]
        detail = "nothing to do" if is_idle else summary["detail"]
        table.add_row(
            summary["stage"], str(summary["done"]), str(summary["rejected"]), f"{summary['duration_s']:.1f}", detail
        )
    console.print(table)


def print_rows(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool = False, *, is_last_folded: bool = False
) -> None:
    """Prints rows as a table, or as blocks if a table is wider than the screen.

    The last column, where `is_last_folded`, takes the room that is left, and several lines if it needs them.
    """
    if as_json:
        names = _unique(columns)
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column), default=0) for column in zip(columns, *cells, strict=True)]
    if is_last_folded and widths:
        widths[-1] = min(widths[-1], FOLDED)
    if sum(widths) + 2 * (len(widths) - 1) > console.width and len(rows) <= 40:
        _print_blocks(columns, cells)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        is_number = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _unique(columns: Sequence[str]) -> list[str]:
    """Names of the columns, the second of a name with `_1` behind it, as DuckDB names those of a subquery."""
    names: list[str] = []
    for column in columns:
        numbered = itertools.chain([column], (f"{column}_{number}" for number in itertools.count(1)))
        names.append(next(name for name in numbered if name not in names))
    return names


def print_plan(explained: Mapping[str, Any]) -> None:
    """Prints the plan of a stage's rerun: counts by reason, then the items."""
    is_known = explained["wanted"] or not explained["notes"]
    counts = f"{explained['pending']} pending of {explained['wanted']} wanted"
    console.print(f"{explained['stage']}: {counts if is_known else 'pending items are not known yet'}")
    for reason, count in explained["reasons"].items():
        console.print(f"  {count:>7} {reason}")
    if downloads := explained["downloads"]["files"]:
        console.print(f"  {downloads:>7} files to download, {explained['downloads']['bytes'] / 1e9:.3g} GB")
    for note in explained["notes"]:
        console.print(f"  {note}", markup=False)
    if explained["items"]:
        print_rows(("variant", "item", "why"), [(i["variant"], i["item"], i["why"]) for i in explained["items"]])


def _print_blocks(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    width = max(map(len, columns))
    for number, row in enumerate(cells):
        if number:
            console.print()
        for column, cell in zip(columns, row, strict=True):
            console.print(Text(f"{column:>{width}}  ", style="bold") + Text(cell))


def _finite(value: Any) -> Any:
    """Copy with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)
