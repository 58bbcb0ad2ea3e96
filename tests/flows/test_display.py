"""Progress and tables on screens of 80 columns, and where the screen is no terminal."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from flows import display
from flows.commands.running import showing_progress
from flows.commands.warehouse import status
from flows.display import PlainReporter, RichReporter
from tasks.run import lost
from tasks.run import progress as module
from tasks.run.progress import REPORTER, LogReporter, format_rate, show_progress, show_stage
from tasks.upkeep import prefect_server, queries

LONGEST = ("train-labeller", 50_188, "abnormalities")


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)


def last_frame(console: Console) -> list[str]:
    """Lines of the bars as the terminal shows them last."""
    frame = console.file.getvalue().rsplit("\x1b[2K", 1)[-1]
    return [line for line in frame.splitlines() if line.strip(" \x1b[?25h")]


def draw(width: int, work: str, total: int, unit: str, note: str) -> list[str]:
    """Lines of the bars of a piece of work that is half done."""
    console = terminal(width)
    with RichReporter(console) as reporter:
        reporter.open("evaluate")
        reporter.start(work, total, unit)
        reporter.update(work, total // 2, note)
    return last_frame(console)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("total", [50_188, 1_000_000_000])
def test_count_and_times_are_never_cut(width, total):
    lines = draw(width, LONGEST[0], total, LONGEST[2], "loss 0.12345, learning rate 1.25e-05")
    assert max(map(len, lines)) <= width
    assert re.search(rf"^train-labeller .* {total // 2}/{total} abnormalities .*\d:\d\d:\d\d", lines[-1])
    assert lines[0].split()[0] == "evaluate"


def test_note_takes_the_room_that_is_left():
    assert "…" in draw(80, *LONGEST, "loss 0.12345, learning rate 1.25e-05")[-1]
    assert "loss 0.12345" in draw(120, *LONGEST, "loss 0.12345")[-1]


def test_a_stage_and_its_count_are_one_bar_and_each_of_two_models_has_its_own():
    console = terminal(80)
    with RichReporter(console) as reporter:
        for _ in range(2):
            reporter.open("train")
            reporter.start("train", 4, "samples")
            reporter.end("train")
            reporter.close("train")
    assert [line.split()[0] for line in last_frame(console)] == ["train", "train"]


def test_a_stage_that_counts_nothing_is_done_unless_it_fails():
    with RichReporter(terminal(80)) as reporter:
        token = REPORTER.set(reporter)
        try:
            with show_stage("evaluate"):
                pass
            with pytest.raises(ZeroDivisionError), show_stage("report"):
                raise ZeroDivisionError
        finally:
            REPORTER.reset(token)
    assert [(task.description, task.finished) for task in reporter.progress.tasks] == [
        ("evaluate", True),
        ("report", False),
    ]


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.1254, "0.125/s"), (99.96, "100/s"), (1254, "1.25k/s"), (999_999, "1000k/s"), (4.2e7, "42M/s"), (0, "0/s")],
)
def test_rates_are_short(rate, text):
    assert format_rate(rate) == text


def test_without_a_terminal_each_stage_is_announced_and_counted_in_plain_lines(capsys):
    with showing_progress(), show_stage("convert"), show_progress("convert", 3, "volumes") as progress:
        assert isinstance(REPORTER.get(), PlainReporter)
        progress.advance(3)
    assert capsys.readouterr().err.splitlines() == ["convert: begins", "convert: 3 of 3 volumes in 0:00:00"]


def test_more_than_was_estimated_raises_the_total(capsys):
    with showing_progress(), show_progress("train", 3, "samples") as progress:
        progress.advance(4)
    assert capsys.readouterr().err.splitlines() == ["train: 4 of 4 samples in 0:00:00"]
    with RichReporter() as reporter:
        reporter.start("train", 3, "samples")
        reporter.update("train", 4, "")
    assert "4/4" in capsys.readouterr().err


def test_line_every_ten_seconds_has_count_rate_and_time_left(monkeypatch):
    lines: list[str] = []
    reporter = LogReporter()
    monkeypatch.setattr(reporter, "say", lines.append)
    clock = iter((100.0, 105.0, 110.0, 112.0, 120.0))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    reporter.start("convert", 300, "volumes")
    for done in (25, 50, 60, 100):
        reporter.update("convert", done, "")
    assert lines == [
        "convert: 50 of 300 volumes, 5/s, 0:00:50 left",
        "convert: 100 of 300 volumes, 5/s, 0:00:40 left",
    ]


def test_status_folds_long_names_and_cuts_nothing(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=screen, width=80, highlight=False))
    variant = "vocabfine-ct-clip-published-0123456789"
    columns = ["stage", "done", "pending", "rejected", "last run", "at (UTC)", "variant"]
    row = ("train-labeller", 150_188, 50_188, 50_188, "never run", "11-27 02:22", variant)
    monkeypatch.setattr(queries, "read_status", lambda _: (columns, [row] * 3))
    for name in ("list_notes", "list_stale_models", "list_absent_encoders", "list_warnings"):
        monkeypatch.setattr(queries, name, lambda _: [])
    monkeypatch.setattr(lost, "list_lost", lambda _: [])
    monkeypatch.setattr(prefect_server, "list_next_runs", list)
    status()
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["stage", "done", "pending", "rejected", "last", "run", "at", "(UTC)", "variant"]
    assert sum(line.split()[0] == "train-labeller" for line in lines) == 3
    start = lines[0].index("variant")
    assert "".join(line[start:].strip() for line in lines[1:]) == variant * 3
