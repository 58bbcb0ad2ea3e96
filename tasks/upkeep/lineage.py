"""Lineage of a stage run as OpenLineage events: https://openlineage.io/spec/2-0-2/OpenLineage.json."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from ctclip_model.errors import ConfigurationError
from ctclip_model.files import whole_file
from ctclip_model.stages import PIPELINE
from warehouse import store

NAMESPACE = "ctclip"
PRODUCER = "https://pypi.org/project/ctclip-rebuild"
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
VERSION_SCHEMA = "https://openlineage.io/spec/facets/1-0-1/DatasetVersionDatasetFacet.json"
FACET_SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunFacet"
EVENTS = {"running": "START", "completed": "COMPLETE", "failed": "FAIL"}  # any other end is ABORT


def export_lineage(data_root: Path, run: str, path: Path) -> int:
    """Writes the OpenLineage events of a run as lines of JSON, and returns their number. Raises as `describe_run`."""
    events = describe_run(data_root, run)
    with whole_file(path) as file:
        file.write("".join(json.dumps(event) + "\n" for event in events).encode())
    return len(events)


def describe_run(data_root: Path, run: str) -> list[dict[str, Any]]:
    """The OpenLineage events of a run: its start and its end, with the data that it read and wrote.

    `run` is the id of a run, the beginning of one, or a stage, of which the latest run is taken. Raises
    `ConfigurationError` for an unknown or ambiguous one.
    """
    with store.read(data_root) as connection:
        answer = connection.execute(store.load_sql(__package__, "run_events"), {"run": run})
        columns = [column[0] for column in answer.description or ()]
        rows = [dict(zip(columns, row, strict=True)) for row in answer.fetchall()]
        ids = sorted({row["run_id"] for row in rows})
        if len(ids) != 1:
            fault = f"{len(ids)} runs begin with {run!r}" if ids else f"there is no run {run!r}"
            raise ConfigurationError(f'{fault}; see: ctclip sql "select run_id, stage, status from runs"')
        sources = connection.execute(store.load_sql(__package__, "run_sources"), {"run_id": ids[0]}).fetchall()
    root, start = data_root.resolve(), rows[0]  # the row of a death may lack facts of the start
    merged = [start | {name: fact for name, fact in row.items() if fact is not None} for row in rows]
    return [_describe_event(root, row, sources) for row in merged]


def _describe_event(data_root: Path, row: dict[str, Any], sources: list[tuple[str, str | None]]) -> dict[str, Any]:
    stage = PIPELINE.get(row["stage"])
    inputs, outputs = (stage.made_of, (stage.makes,)) if stage else ((), ())
    facts = {name: value for name, value in row.items() if name != "recorded_at" and value is not None}
    facts["parameters"] = json.loads(row["parameters"] or "{}")
    event_type = EVENTS.get(row["status"], "ABORT")
    return {
        "eventType": event_type,
        "eventTime": row["recorded_at"].isoformat(),
        "producer": PRODUCER,
        "schemaURL": SCHEMA,
        "run": {
            "runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PRODUCER}/{row['run_id']}")),
            "facets": {"ctclip_run": {"_producer": PRODUCER, "_schemaURL": FACET_SCHEMA, **facts}},
        },
        "job": {"namespace": NAMESPACE, "name": row["stage"] or "unknown"},
        "inputs": [
            dataset
            for data in inputs
            for dataset in (_list_sources(sources) if data == "source:" else [_describe_data(data_root, data)])
        ],
        "outputs": [_describe_data(data_root, data) for data in outputs if data],
    }


def _describe_data(data_root: Path, data: str) -> dict[str, Any]:
    """A table or folder, which `Stage` names as `duckdb:<table>` or `file:<folder>`."""
    scheme, _, name = data.partition(":")
    if scheme == "duckdb":
        return {"namespace": f"file://{data_root}/warehouse.duckdb", "name": name}
    return {"namespace": "file", "name": f"{data_root}/{name}"}


def _list_sources(sources: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """The ingested sources with their revisions."""
    found = []
    for source, revision in sources:
        scheme, _, name = source.partition(":")
        dataset: dict[str, Any] = {"namespace": scheme, "name": name.removeprefix("//")}
        if revision:
            version = {"_producer": PRODUCER, "_schemaURL": VERSION_SCHEMA, "datasetVersion": revision}
            dataset["facets"] = {"version": version}
        found.append(dataset)
    return found
