"""What an ingest means for the stages after it, said at once: `status` then tells what a rerun would do."""

from __future__ import annotations

from tasks.plan.wanted import want_labels, want_volumes
from tasks.run.pending import declare_wanted
from tasks.run.stage_run import StageRun
from warehouse import store


def declare_downstream(run: StageRun) -> None:
    """Declares anew what conversion and labelling should have made, for every recipe and labeller already in use."""
    with store.read(run.data_root) as connection:
        rows = connection.execute(
            "select distinct stage, variant from current_wanted where stage in ('convert', 'label')"
        ).fetchall()
    for stage, variant in rows:
        wanted = want_volumes(run.data_root, variant) if stage == "convert" else want_labels(run.data_root, variant)
        declare_wanted(run, variant, wanted, stage=stage)
