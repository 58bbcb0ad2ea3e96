"""Items that follow from an ingest, declared at once: `ctclip status` shows them before another stage runs."""

from __future__ import annotations

from tasks.plan.wanted import find_wanted_labels, find_wanted_volumes
from tasks.run.pending import declare_wanted
from tasks.run.stage_run import StageRun
from warehouse import store

_VARIANTS_IN_USE = "select distinct stage, variant from current_wanted where stage in ('convert', 'label')"


def declare_downstream(run: StageRun) -> None:
    """Declares the volumes of every recipe in use and the reports of every labeller in use."""
    for stage, variant in store.query(run.data_root, _VARIANTS_IN_USE):
        find_wanted = find_wanted_volumes if stage == "convert" else find_wanted_labels
        declare_wanted(run, variant, find_wanted(run.data_root, variant), stage=stage)
