"""Sentences about texts that are longer than their reader's limit of tokens."""

from __future__ import annotations

from tasks.run.stage_run import StageRun


def note_cut(run: StageRun, count_cut: int) -> None:
    """Adds to the run's summary that a part of `count_cut` texts was not read. Nothing for none."""
    if count_cut:
        note = f"{count_cut} texts are longer than the model's limit, and their end was not read"
        run.detail = f"{run.detail}; {note}" if run.detail else note
