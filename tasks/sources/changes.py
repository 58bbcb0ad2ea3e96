"""Compares a revision of a source with the recorded catalogue. Only the difference is recorded and becomes pending."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ctclip_model.config import VERSIONS, compute_fingerprint
from tasks.run.stage_run import StageRun
from tasks.sources.catalogue import Catalogue
from tasks.sources.open_source import Source
from tasks.sources.tables import LABELS, METADATA, NO_CHEST, REPORTS
from warehouse import store

Row: TypeAlias = dict[str, Any]
Recorded: TypeAlias = Mapping[str, tuple[str, str]]  # key of a row -> (fingerprint, source) of its current record

NAMES_SHOWN = 50  # names of each kind of change on the page of a flow run
KINDS = ("new", "changed", "withdrawn")

# table -> (key columns, files of its rows by split)
INGESTED = {
    "volumes": (("volume_name",), METADATA),
    "reports": (("scan_id",), REPORTS),
    "published_labels": (("scan_id",), LABELS),
    "exclusions": (("volume_name", "reason"), NO_CHEST),
}


@dataclass
class Changes:
    """New, changed and withdrawn rows of each table. A key of several columns is joined by spaces."""

    rows: dict[str, list[Row]] = field(default_factory=dict)  # rows to record, by table
    new: dict[str, list[str]] = field(default_factory=dict)  # keys, by table
    changed: dict[str, list[str]] = field(default_factory=dict)
    withdrawn: dict[str, list[str]] = field(default_factory=dict)

    def count(self, kind: str, table: str = "volumes") -> int:
        """Number of keys of a kind of change: new, changed or withdrawn."""
        return len(getattr(self, kind).get(table, ()))

    @property
    def is_any(self) -> bool:
        """True if there is anything to record."""
        return any(self.rows.values())

    def describe(self) -> str:
        """One line with the counts of each table that changed."""
        parts = [
            f"{table}: {', '.join(f'{self.count(kind, table)} {kind}' for kind in KINDS)}"
            for table in INGESTED
            if any(self.count(kind, table) for kind in KINDS)
        ]
        return "; ".join(parts) or "nothing changed"

    def to_markdown(self, source: str, revision: str) -> str:
        """Markdown page for a flow run: the counts, and the first names of each kind of change."""
        lines = [f"# Ingest of {source}", f"Revision `{revision}`: {self.describe()}"]
        for table in INGESTED:
            for kind in KINDS:
                names = getattr(self, kind).get(table, [])
                if names:
                    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
                    lines.append(f"**{table}, {len(names)} {kind}**: {', '.join(names[:NAMES_SHOWN])}{more}")
        return "\n\n".join(lines)


def read_current(data_root: Path, force: bool) -> dict[str, Recorded]:
    """Current rows of each ingested table. With `force`, their fingerprints are empty, so that every row is changed."""
    current: dict[str, Recorded] = {}
    for table, (keys, _) in INGESTED.items():
        key = " || ' ' || ".join(keys)
        rows = store.query(data_root, f"select distinct {key}, fingerprint, source from current_{table}")
        current[table] = {name: ("" if force else fingerprint, source) for name, fingerprint, source in rows}
    return current


def compare(
    catalogue: Catalogue, current: Mapping[str, Recorded], source: str, revision: str, former_name: str = ""
) -> Changes:
    """Compares a catalogue with the current rows of `read_current`.

    A row is withdrawn if its source no longer has it. `former_name` is a name of the source in older records. A table
    whose file is absent or unreadable withdraws nothing. Volumes stay as they were if not a single one has a file.
    """
    changes = Changes()
    origin = {"source": source, "revision": revision}
    unknown_files = {*catalogue.unreadable, *catalogue.absent}
    has_files = catalogue.count_files()[0] > 0
    for table, groups in _group_rows(catalogue).items():
        if table == "volumes" and not has_files:
            continue
        key_columns, files = INGESTED[table]
        recorded: list[Row] = []
        for key, rows in groups.items():
            before = current[table].get(key)
            if before != (rows[0]["fingerprint"], source):
                (changes.changed if before else changes.new).setdefault(table, []).append(key)
                recorded += [row | {"is_withdrawn": False} | origin for row in rows]
        unknown_splits = tuple(f"{split}_" for split, path in files.items() if path in unknown_files)
        for key in _find_withdrawn(current[table], groups, {source, former_name}, unknown_splits):
            changes.withdrawn.setdefault(table, []).append(key)
            columns = dict(zip(key_columns, key.split(" "), strict=True))
            recorded.append(columns | {"fingerprint": "withdrawn", "is_withdrawn": True} | origin)
        changes.rows[table] = recorded
    return changes


def record_rejects(run: StageRun, catalogue: Catalogue) -> None:
    """Records the catalogue's new errors as rejects, and withdraws the rejects that the source has mended."""
    errors = {
        error.item: (error, compute_fingerprint(error.reason, error.detail, VERSIONS["ingest"]))
        for error in catalogue.errors
    }
    sql = "select item, fingerprint from current_rejects where stage = 'ingest' and variant = ?"
    known = dict(store.query(run.data_root, sql, [run.variant]))
    new = [(error, fingerprint) for item, (error, fingerprint) in errors.items() if known.get(item) != fingerprint]
    if new:
        run.reject_all(new)
    mended = [item for item in known if item not in errors]
    if mended:
        row = {"stage": run.stage, "variant": run.variant, "fingerprint": "withdrawn", "is_withdrawn": True}
        run.record("rejects", [row | {"item": item} for item in mended])


def find_revision(data_root: Path, source: str) -> str | None:
    """The recorded revision of a source. None: it was never ingested."""
    rows = store.query(data_root, "select revision from current_sources where source = ?", [source])
    return rows[0][0] if rows else None


def source_row(source: Source, revision: str, catalogue: Catalogue, changes: Changes) -> Row:
    """The row of `sources` for a revision that was read."""
    return {
        "source": source.name, "revision": revision, "requested_revision": source.requested_revision,
        "fingerprint": compute_fingerprint(revision, VERSIONS["ingest"]),
        "storage": source.storage, "kind": source.kind, "count_volumes": len(catalogue.volumes),
        "count_scans": len({row["scan_id"] for row in catalogue.volumes}), "count_reports": len(catalogue.reports),
        "count_new": changes.count("new"), "count_changed": changes.count("changed"),
        "count_withdrawn": changes.count("withdrawn"),
    }  # fmt: skip


def _group_rows(catalogue: Catalogue) -> dict[str, dict[str, list[Row]]]:
    """Rows of the catalogue as {table: {key: rows}}. A scan has several rows of labels, every other key has one."""
    single = {"volumes": catalogue.volumes, "reports": catalogue.reports, "exclusions": catalogue.exclusions}
    groups = {
        table: {" ".join(row[column] for column in INGESTED[table][0]): [row] for row in rows}
        for table, rows in single.items()
    }
    groups["published_labels"] = catalogue.published_labels
    return {table: groups[table] for table in INGESTED}


def _find_withdrawn(
    known: Recorded, found: Mapping[str, Sequence[Row]], sources: Collection[str], unknown_splits: tuple[str, ...]
) -> Iterator[str]:
    """Keys of the source's recorded rows that it has no longer, except those of splits whose file is unknown."""
    for key, (_, known_source) in known.items():
        if known_source in sources and key not in found and not key.startswith(unknown_splits):
            yield key
