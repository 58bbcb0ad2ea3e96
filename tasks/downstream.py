"""What an ingest means for the stages after it, said at once: `plan` and `status` then tell what a rerun would do."""

from __future__ import annotations

from ctclip_model.config import PRESETS
from tasks.conversion import read_volumes
from tasks.labelling import read_reports, wanted_labels
from tasks.planning import declare_wanted
from tasks.runs import StageRun
from warehouse import store


def declare_downstream(run: StageRun) -> None:
    """Declares anew what conversion and labelling should have made, for every recipe and labeller already in use."""
    with store.read(run.data_root) as connection:
        rows = connection.execute("select distinct stage, variant from current_wanted").fetchall()
    recipes = {make().recipe.recipe_id: make().recipe for make in PRESETS.values()}
    for stage, variant in rows:
        if stage == "convert" and variant in recipes:
            volumes = read_volumes(run.data_root, recipes[variant], None)
            declare_wanted(run, variant, {name: one.fingerprint for name, one in volumes.items()}, stage=stage)
        if stage == "label":
            declare_wanted(run, variant, wanted_labels(read_reports(run), variant), stage=stage)
