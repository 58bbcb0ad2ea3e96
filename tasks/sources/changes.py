"""What a revision of a source changes in the catalogue: only that is recorded, and only that becomes pending."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctclip_model.config import VERSIONS, compute_fingerprint
from tasks.run.stage_run import StageRun
from tasks.sources.catalogue import Catalogue
from tasks.sources.open_source import Source
from tasks.sources.tables import LABELS, METADATA, NO_CHEST, REPORTS
from warehouse import store

Row = dict[str, Any]

NAMES_SHOWN = 50  # of each kind in an artifact

# table -> (key columns, the files its rows come from)
INGESTED = {
    "volumes": (("volume_name",), METADATA),
    "reports": (("scan_id",), REPORTS),
    "published_labels": (("scan_id",), LABELS),
    "exclusions": (("volume_name", "reason"), NO_CHEST),
}


@dataclass
class Changes:
    """New, changed and withdrawn rows, by table; keys are joined by a space."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    new: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)
    withdrawn: dict[str, list[str]] = field(default_factory=dict)

    def count(self, kind: str, table: str = "volumes") -> int:
        return len(getattr(self, kind).get(table, ()))

    @property
    def is_any(self) -> bool:
        return any(self.rows.values())

    def describe(self) -> str:
        parts = [
            f"{table}: {self.count('new', table)} new, {self.count('changed', table)} changed, "
            f"{self.count('withdrawn', table)} withdrawn"
            for table in INGESTED
            if any(self.count(kind, table) for kind in ("new", "changed", "withdrawn"))
        ]
        return "; ".join(parts) or "nothing changed"

    def to_markdown(self, source: str, revision: str) -> str:
        """The same with names, the first of each kind, for the page of a flow run."""
        lines = [f"# Ingest of {source}", f"Revision `{revision}`: {self.describe()}"]
        for table in INGESTED:
            for kind in ("new", "changed", "withdrawn"):
                names = getattr(self, kind).get(table, [])
                if names:
                    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
                    lines.append(f"**{table}, {len(names)} {kind}**: {', '.join(names[:NAMES_SHOWN])}{more}")
        return "\n\n".join(lines)


def compare(
    catalogue: Catalogue, current: dict[str, dict[str, tuple[str, str]]], source: str, revision: str
) -> Changes:
    """The rows to record. `current` = {table: {key: (fingerprint, source)}} of the rows that now stand.

    Nothing is withdrawn from a table whose file is absent or could not be read: what is unknown is not gone.
    """
    changes = Changes()
    ingested: dict[str, list[list[Row]]] = {
        "volumes": [[row] for row in catalogue.volumes],
        "reports": [[row] for row in catalogue.reports],
        "published_labels": list(catalogue.published_labels.values()),
        "exclusions": [[row] for row in catalogue.exclusions],
    }
    origin = {"source": source, "revision": revision}
    for table, groups in ingested.items():
        key_columns, files = INGESTED[table]
        known = current[table]
        recorded: list[Row] = []
        seen = set()
        for group in groups:
            key = " ".join(group[0][column] for column in key_columns)
            seen.add(key)
            before = known.get(key)
            if before == (group[0]["fingerprint"], source):
                continue
            (changes.changed if before else changes.new).setdefault(table, []).append(key)
            recorded += [row | {"is_withdrawn": False} | origin for row in group]
        for key, (_, known_source) in known.items():
            if (
                known_source != source
                or key in seen
                or _is_unknown(key, files, [*catalogue.unreadable, *catalogue.absent])
            ):
                continue
            changes.withdrawn.setdefault(table, []).append(key)
            gone = dict(zip(key_columns, key.split(" "), strict=True))
            recorded.append(gone | {"fingerprint": "withdrawn", "is_withdrawn": True} | origin)
        changes.rows[table] = recorded
    return changes


def _is_unknown(key: str, files: dict[str, str], unknown: list[str]) -> bool:
    return any(key.startswith(f"{split}_") for split, path in files.items() if path in unknown)


def record_rejects(run: StageRun, catalogue: Catalogue) -> None:
    """Records new errors, and withdraws those that the source has mended."""
    errors = {
        error.item: (error, compute_fingerprint(error.reason, error.detail, VERSIONS["ingest"]))
        for error in catalogue.errors
    }
    stood = _read_rejects(run.data_root, run.variant)
    new = [(error, fingerprint) for item, (error, fingerprint) in errors.items() if stood.get(item) != fingerprint]
    if new:
        run.reject_all(new)
    mended = [item for item in stood if item not in errors]
    if mended:
        row = {"stage": run.stage, "variant": run.variant, "fingerprint": "withdrawn", "is_withdrawn": True}
        run.record("rejects", [row | {"item": item} for item in mended])


def source_row(source: Source, revision: str, catalogue: Catalogue, changes: Changes) -> dict[str, object]:
    return {
        "source": source.name, "revision": revision, "requested_revision": source.requested_revision,
        "fingerprint": compute_fingerprint(revision, VERSIONS["ingest"]),
        "storage": source.storage, "kind": source.kind, "count_volumes": len(catalogue.volumes),
        "count_scans": len({row["scan_id"] for row in catalogue.volumes}), "count_reports": len(catalogue.reports),
        "count_new": changes.count("new"), "count_changed": changes.count("changed"),
        "count_withdrawn": changes.count("withdrawn"),
    }  # fmt: skip


def read_current(data_root: Path, force: bool) -> dict[str, dict[str, tuple[str, str]]]:
    current: dict[str, dict[str, tuple[str, str]]] = {}
    with store.read(data_root) as connection:
        for table, (keys, _) in INGESTED.items():
            key = " || ' ' || ".join(keys)
            rows = connection.execute(f"select distinct {key}, fingerprint, source from current_{table}").fetchall()
            current[table] = {name: ("" if force else fingerprint, source) for name, fingerprint, source in rows}
    return current


def _read_rejects(data_root: Path, source: str) -> dict[str, str]:
    with store.read(data_root) as connection:
        rows = connection.execute(
            "select item, fingerprint from current_rejects where stage = 'ingest' and variant = ?", [source]
        ).fetchall()
    return dict(rows)


def find_revision(data_root: Path, source: str) -> str | None:
    with store.read(data_root) as connection:
        row = connection.execute("select revision from current_sources where source = ?", [source]).fetchone()
    return row[0] if row else None
