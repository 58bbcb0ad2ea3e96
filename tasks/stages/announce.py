"""The event that data changed. Prefect is told of each change at least once.

A change is noted in the data root before it is recorded, and the note goes once a Prefect server has taken the event.
So an ingest that is killed in between, or that reaches no server, leaves the telling to the next one. Telling twice
does no harm: a rebuild makes only pending items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.events import Event, RelatedResource, Resource

from ctclip_model.files import whole_file
from tasks.run.stage_run import StageRun
from tasks.sources.changes import Changes
from tasks.stages.prefect_pages import is_nested, with_server

DATA_CHANGED = "ctclip.data.changed"  # name of the event that starts prefect.yaml's rebuild
UNTOLD = "locks/untold_changes.json"
KINDS = ("new", "changed", "withdrawn")

Untold = dict[str, dict[str, Any]]  # payload of the event of each source


def note_changes(run: StageRun, source: str, revision: str, changes: Changes) -> None:
    """Notes changes that are about to be recorded."""
    if changes.is_any:
        counts = {f"{table}_{kind}": changes.count(kind, table) for table in changes.rows for kind in KINDS}
        payload = {"revision": revision, "run_id": run.run_id} | counts
        _write(run.data_root, read_untold(run.data_root) | {source: payload})


def read_untold(data_root: Path) -> Untold:
    """Changes of which Prefect has not been told. A damaged note counts as none."""
    try:
        noted = json.loads((data_root / UNTOLD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def forget(data_root: Path, told: Untold) -> None:
    """Removes the notes of changes, unless newer changes of the same source have replaced them."""
    noted = read_untold(data_root)
    left = {source: payload for source, payload in noted.items() if told.get(source) != payload}
    if left != noted:
        _write(data_root, left)


def tell_changes(data_root: Path) -> None:
    """Tells Prefect of the noted changes, except inside another flow, which goes on with the changes itself."""
    if not is_nested():
        for source, payload in read_untold(data_root).items():
            with_server(_tell, data_root, source, payload)


def _tell(data_root: Path, source: str, payload: Mapping[str, Any]) -> None:
    event = Event(
        event=DATA_CHANGED,
        resource=Resource({"prefect.resource.id": f"ctclip.source.{source}"}),
        related=[
            RelatedResource(
                {"prefect.resource.id": f"prefect.flow-run.{runtime.flow_run.id}", "prefect.resource.role": "flow-run"}
            )
        ],
        payload=dict(payload),
    )
    with get_client(sync_client=True) as client:  # `emit_event` would not say if the server took the event
        client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
    forget(data_root, {source: dict(payload)})


def _write(data_root: Path, untold: Untold) -> None:
    path = data_root / UNTOLD
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(json.dumps(untold).encode())
