"""Ingest a revision of CT-RATE: its tables and file facts, compared with the catalogue that stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from ctclip_model.data.names import Storage
from tasks.settings import DATA_ROOT, LIMITS
from tasks.sources.open_source import open_source
from tasks.stages.hub_token import load_hub_token
from tasks.stages.ingest import has_moved, read_source, record_changes, refuse_unreadable
from tasks.stages.stage import as_opaque, stage_run


@flow(name="ingest", timeout_seconds=LIMITS.stage_timeout_s)
def ingest(
    source: str | None = None,
    data_root: Path = DATA_ROOT,
    storage: Storage | None = None,
    force: bool = False,
    orientation: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Record what is new, changed or withdrawn at a source, by default the one ingested last.

    That is a folder of CT-RATE's layout, `hf://datasets/OWNER/NAME` at a `revision`, or `rad-chestct:FOLDER`, whose
    arrays are turned by `orientation`.
    """
    opened = open_source(source, data_root, storage, orientation, revision, load_hub_token)
    with stage_run(data_root, "ingest", opened.name) as run:
        if force or has_moved(run, opened):
            revision, catalogue = read_source(opened)
            record_changes(run, opened, revision, as_opaque(catalogue), force)
            refuse_unreadable(catalogue)
    return run.summary()
