"""Ingest a revision of a source: its tables and file facts, compared with the recorded catalogue."""

from __future__ import annotations

from typing import Any

from flows.flow_taking import flow_taking
from flows.options import IngestOptions
from tasks.run.publish import publish_leftovers
from tasks.settings import LIMITS
from tasks.sources.open_source import open_source
from tasks.stages.announce import tell_changes
from tasks.stages.hub_token import load_hub_token
from tasks.stages.ingest import has_moved, read_source, record_changes, refuse_incomplete
from tasks.stages.stage import as_opaque, stage_run


@flow_taking(IngestOptions, timeout_seconds=LIMITS.stage_timeout_s)
def ingest(options: IngestOptions) -> dict[str, Any]:
    publish_leftovers(options.data_root)
    source = open_source(
        options.source, options.data_root, options.storage, options.orientation, options.revision, load_hub_token
    )
    with stage_run(options.data_root, "ingest", source.name) as run:
        if options.force or has_moved(run, source):
            revision, catalogue = read_source(source)
            record_changes(run, source, revision, as_opaque(catalogue), options.force)
            refuse_incomplete(source, catalogue)
        tell_changes(options.data_root)
    return run.summary()
