"""What an ingest means for the stages after it, said at once: `plan` and `status` then tell what a rerun would do."""

from __future__ import annotations

from ctclip_model.config import PRESETS
from ctclip_model.device import Precision
from tasks.conversion import read_volumes
from tasks.labelling import read_reports, read_trained_on, wanted_labels
from tasks.planning import declare_wanted
from tasks.runs import StageRun
from warehouse import store


def declare_downstream(run: StageRun) -> None:
    """Declares anew what conversion and labelling should have made, for every recipe and labeller already in use."""
    with store.read(run.data_root) as connection:
        rows = connection.execute("select distinct stage, variant from current_wanted").fetchall()
        known = {mark for (mark,) in connection.execute(_WANTED_LABELS).fetchall()}
    recipes = {make().recipe.recipe_id: make().recipe for make in PRESETS.values()}
    for stage, variant in rows:
        if stage == "convert" and variant in recipes:
            volumes = read_volumes(run.data_root, recipes[variant], None)
            declare_wanted(run, variant, {name: one.fingerprint for name, one in volumes.items()}, stage=stage)
        if stage == "label":
            texts, trained_on = read_reports(run), read_trained_on(run.data_root, variant)
            wanted = [wanted_labels(texts, variant, dtype, trained_on) for dtype in Precision]
            # as they were asked for last: in the precision in which most reports are known already
            declare_wanted(run, variant, max(wanted, key=lambda one: len(known & set(one.values()))), stage=stage)


_WANTED_LABELS = "select fingerprint from current_wanted where stage = 'label'"
