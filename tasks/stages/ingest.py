"""Ingest: the tables and file facts of a source become the catalogue. Only changes are recorded."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.errors import StageFailedError
from tasks.plan.downstream import declare_downstream
from tasks.run.publish import publish
from tasks.run.stage_run import StageRun
from tasks.sources.catalogue import Catalogue
from tasks.sources.changes import Changes, compare, find_revision, read_current, record_rejects, source_row
from tasks.sources.open_source import Source
from tasks.sources.presence import count_recorded, describe_presence, find_shortfall
from tasks.stages.announce import note_changes
from warehouse import store


def has_moved(run: StageRun, source: Source) -> bool:
    """True if the source, or this code, may differ from the last ingest. An unmoved source is not read."""
    rows = store.query(run.data_root, store.load_sql(__package__, "newest_source"))
    if not rows or rows[0][:2] != (source.name, source.storage):
        return True
    revision = source.find_unchanged_revision()
    if revision is None or rows[0][2] != compute_fingerprint(revision, VERSIONS["ingest"]):
        return True
    there, count = count_recorded(run.data_root, source.name)
    run.detail = f"nothing changed; {there} of {count} volumes are there"
    return there == 0  # an older version took a source without volumes


@task(cache_policy=NO_CACHE)
def read_source(source: Source) -> tuple[str, Catalogue]:
    """Reads every table and the facts of every file, and returns them with the revision."""
    revision, catalogue = source.read()
    get_run_logger().info("%s: revision %s, %d volumes", source.name, revision[:12], len(catalogue.volumes))
    return revision, catalogue


@task(cache_policy=NO_CACHE)
def record_changes(run: StageRun, source: Source, revision: str, catalogue: Catalogue, force: bool) -> Changes:
    """Records the differences from the recorded catalogue."""
    changes = compare(catalogue, read_current(run.data_root, force), source.name, revision, source.former_name)
    run.detail = "; ".join([changes.describe(), *describe_presence(source, catalogue)])
    note_changes(run, source.name, revision, changes)
    for table, rows in changes.rows.items():
        if rows:
            run.record(table, rows)
    run.count_done = sum(map(len, changes.rows.values()))
    record_rejects(run, catalogue)
    if run.is_announced or find_revision(run.data_root, source.name) != revision:
        run.record("sources", [source_row(source, revision, catalogue, changes)])
    if run.is_announced:
        publish(run.data_root)
        declare_downstream(run)
    create_markdown_artifact(changes.to_markdown(source.name, revision), key="ingest", description=run.detail)
    get_run_logger().info("%s", run.detail)
    return changes


def refuse_incomplete(source: Source, catalogue: Catalogue) -> None:
    """Fails the stage if a table could not be read, or if no volume is there. Everything else is recorded before."""
    if catalogue.unreadable:
        errors = [str(error) for error in catalogue.errors if error.item in catalogue.unreadable]
        raise StageFailedError("ingest: " + "; ".join(errors) + "; its rows stay as they were")
    if shortfall := find_shortfall(source, catalogue):
        raise StageFailedError(f"ingest: {shortfall}. Rows of volumes stay as they were, other tables are recorded")
