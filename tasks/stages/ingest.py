"""Ingest: a source's tables and file facts become the catalogue; only what changed is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import VERSIONS, fingerprint
from ctclip_model.data.names import Storage
from ctclip_model.data.npz import ORIENTATION
from ctclip_model.errors import ConfigurationError, MissingInputError, StageFailedError
from tasks.changes import INGESTED, Changes, compare
from tasks.downstream import declare_downstream
from tasks.publish import publish
from tasks.runs import StageRun
from tasks.sources.address import RAD_CHESTCT, Address, parse_address
from tasks.sources.catalogue import Catalogue
from tasks.sources.hub import HubSource
from tasks.sources.local import LocalSource
from tasks.sources.rad_chestct import RadChestSource
from tasks.stages.hub_token import load_hub_token
from tasks.stages.shown import announce_changes
from warehouse import store

Source: TypeAlias = LocalSource | HubSource


def open_source(
    source: str | None,
    data_root: Path,
    storage: Storage | None,
    orientation: str | None = None,
    revision: str | None = None,
) -> Source:
    """The source that an address names; by default the one ingested last, at the revision that was asked for then.

    CT-RATE is a folder, as a path or `file://`, or `hf://datasets/OWNER/NAME[@REVISION]`; RAD-ChestCT is
    `rad-chestct:FOLDER`.
    """
    given = None if source is None else parse_address(source, revision)
    last, stored = _recorded_source(data_root, given) or (None, None)
    address = given or last
    if address is None:
        raise ConfigurationError("no source has been ingested yet: say which with --source")
    if revision is not None:
        address = parse_address(str(address), revision)
    folder, known = Path(address.place), storage or ("v1" if stored == "v1" else "v2")
    if address.is_hub:
        return HubSource(address, data_root, known, load_hub_token())
    if address.scheme == RAD_CHESTCT:
        turned = stored.removeprefix("npz-") if stored else ORIENTATION
        return RadChestSource(folder, data_root, orientation or turned)
    return LocalSource(folder, data_root, known)


@task(cache_policy=NO_CACHE)
def has_moved(run: StageRun, source: Source) -> bool:
    """Whether the source may differ from what was ingested last, by this code: what has not moved is not read."""
    with store.read(run.data_root) as connection:
        row = connection.execute(
            "select source, storage, fingerprint from current_sources semi join "
            "(from runs where status = 'completed') using (run_id) order by run_id desc limit 1"
        ).fetchone()
    if row is None or row[:2] != (source.name, source.storage):
        return True
    revision = source.unmoved_revision()
    if revision is None or row[2] != fingerprint(revision, VERSIONS["ingest"]):
        return True
    run.detail = "nothing changed"
    return False


@task(cache_policy=NO_CACHE)
def read_source(source: Source) -> tuple[str, Catalogue]:
    """Reads every table and looks every file up."""
    revision, catalogue = source.read()
    get_run_logger().info("%s: revision %s, %d volumes", source.name, revision[:12], len(catalogue.volumes))
    return revision, catalogue


@task(cache_policy=NO_CACHE)
def record_changes(run: StageRun, source: Source, revision: str, catalogue: Catalogue, force: bool) -> Changes:
    """Records what differs from the catalogue that stands."""
    changes = compare(catalogue, _current(run.data_root, force), source.name, revision)
    absent = f"; not there: {', '.join(catalogue.absent)}" if catalogue.absent and changes.is_any else ""
    run.detail = changes.describe() + absent
    for table, rows in changes.rows.items():
        if rows:
            run.record(table, rows)
    run.count_done = sum(map(len, changes.rows.values()))
    _record_rejects(run, catalogue)
    if run.is_announced or _recorded_revision(run.data_root, source.name) != revision:
        run.record("sources", [_source_row(source, revision, catalogue, changes)])
    if run.is_announced:
        publish(run.data_root)
        declare_downstream(run)
    announce_changes(run, source.name, revision, changes)
    create_markdown_artifact(changes.to_markdown(source.name, revision), key="ingest", description=run.detail)
    get_run_logger().info("%s", run.detail)
    return changes


def refuse_unreadable(catalogue: Catalogue) -> None:
    """Fails the stage, once all else is recorded, when a whole table could not be read."""
    if catalogue.unreadable:
        errors = [str(error) for error in catalogue.errors if error.item in catalogue.unreadable]
        raise StageFailedError("ingest: " + "; ".join(errors) + "; its rows stay as they were")


def _record_rejects(run: StageRun, catalogue: Catalogue) -> None:
    """Records new errors, and withdraws those that the source has mended."""
    errors = {
        error.item: (error, fingerprint(error.reason, error.detail, VERSIONS["ingest"])) for error in catalogue.errors
    }
    stood = _recorded_rejects(run.data_root, run.variant)
    new = [(error, mark) for item, (error, mark) in errors.items() if stood.get(item) != mark]
    if new:
        run.reject_all(new)
    mended = [item for item in stood if item not in errors]
    if mended:
        row = {"stage": run.stage, "variant": run.variant, "fingerprint": "withdrawn", "is_withdrawn": True}
        run.record("rejects", [row | {"item": item} for item in mended])


def _source_row(source: Source, revision: str, catalogue: Catalogue, changes: Changes) -> dict[str, object]:
    return {
        "source": source.name, "revision": revision, "requested_revision": source.requested_revision,
        "fingerprint": fingerprint(revision, VERSIONS["ingest"]),
        "storage": source.storage, "kind": source.kind, "count_volumes": len(catalogue.volumes),
        "count_scans": len({row["scan_id"] for row in catalogue.volumes}), "count_reports": len(catalogue.reports),
        "count_new": changes.count("new"), "count_changed": changes.count("changed"),
        "count_withdrawn": changes.count("withdrawn"),
    }  # fmt: skip


def _recorded_source(data_root: Path, given: Address | None) -> tuple[Address, str] | None:
    try:
        with store.read(data_root) as connection:
            row = connection.execute(
                "select source, requested_revision, storage from current_sources "
                "where source = coalesce(?, source) order by run_id desc",
                [given and str(given)],
            ).fetchone()
    except MissingInputError:
        return None
    return row and (parse_address(row[0], row[1]), row[2])


def _current(data_root: Path, force: bool) -> dict[str, dict[str, tuple[str, str]]]:
    current: dict[str, dict[str, tuple[str, str]]] = {}
    with store.read(data_root) as connection:
        for table, (keys, _) in INGESTED.items():
            key = " || ' ' || ".join(keys)
            rows = connection.execute(f"select distinct {key}, fingerprint, source from current_{table}").fetchall()
            current[table] = {name: ("" if force else mark, source) for name, mark, source in rows}
    return current


def _recorded_rejects(data_root: Path, source: str) -> dict[str, str]:
    with store.read(data_root) as connection:
        rows = connection.execute(
            "select item, fingerprint from current_rejects where stage = 'ingest' and variant = ?", [source]
        ).fetchall()
    return dict(rows)


def _recorded_revision(data_root: Path, source: str) -> str | None:
    with store.read(data_root) as connection:
        row = connection.execute("select revision from current_sources where source = ?", [source]).fetchone()
    return row[0] if row else None
