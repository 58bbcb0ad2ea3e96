"""Wanted and pending items of a stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tasks.run.fingerprints import get_parts, has_parts
from tasks.run.publish import publish
from tasks.run.selection import EVERYTHING, Selection
from tasks.run.stage_run import StageRun
from warehouse import store


def declare_wanted(
    run: StageRun, variant: str, wanted: Mapping[str, str], *, stage: str | None = None, is_complete: bool = True
) -> None:
    """Records the items that a stage's variant should have made, as {item: fingerprint}. Only changes are written.

    The parts of a `Fingerprint` are recorded too. Items that are no longer wanted are withdrawn if `wanted` is
    complete. `stage` defaults to the run's stage.
    """
    stage = stage or run.stage
    sql = "select item, fingerprint, parts is not null from current_wanted where stage = ? and variant = ?"
    rows = store.query(run.data_root, sql, [stage, variant])
    current = {item: (fingerprint, is_explained) for item, fingerprint, is_explained in rows}
    row: dict[str, Any] = {"stage": stage, "variant": variant}
    changed = [
        row | {"item": item, "fingerprint": fingerprint, "parts": get_parts(fingerprint), "is_withdrawn": False}
        for item, fingerprint in wanted.items()
        if current.get(item) not in ((fingerprint, True), (fingerprint, has_parts(fingerprint)))
    ]
    withdrawn = [
        row | {"item": item, "fingerprint": fingerprint, "is_withdrawn": True}
        for item, (fingerprint, _) in current.items()
        if is_complete and item not in wanted
    ]
    if changed or withdrawn:
        run.record("wanted", changed + withdrawn)
        publish(run.data_root)


def plan_items(
    run: StageRun,
    variant: str,
    wanted: Mapping[str, str],
    *,
    selection: Selection = EVERYTHING,
    force: bool = False,
    retry_rejects: bool = False,
    is_complete: bool = True,
    lost: Collection[str] = (),
) -> dict[str, str]:
    """Items that this run has to make, as {item: fingerprint}, in the order of `wanted`.

    `force` makes all selected items again. `retry_rejects` includes permanently rejected items. `lost` are items whose
    files are gone: they are made again too.
    """
    declare_wanted(run, variant, wanted, is_complete=is_complete)
    if force:
        pending = set(wanted)
    else:
        sql = "select item from work_items where stage = ? and variant = ? and not is_done and (? or not is_rejected)"
        pending = {item for (item,) in store.query(run.data_root, sql, [run.stage, variant, retry_rejects])}
        pending |= set(lost)
    chosen = selection.choose([item for item in wanted if item in pending])
    return {item: wanted[item] for item in chosen}
