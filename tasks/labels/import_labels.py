"""Imports labels from elsewhere: another source of the built-in findings, or a source of other findings."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet, check_name
from ctclip_model.errors import BadItemError, ConfigurationError, StageFailedError
from ctclip_model.files import sha256_of
from tasks.labels.label_sources import record_set
from tasks.labels.label_table import LabelTable, describe_errors, read_label_table
from tasks.labels.labellers import RADBERT, TFIDF, TRAINED_PREFIX
from tasks.run.stage_run import StageRun, open_run
from tasks.settings import HAND, LIMITS, PUBLISHED_LABELS
from warehouse import store

STAGE = "import-labels"
TAKEN = {PUBLISHED_LABELS, HAND, RADBERT, TFIDF}
THRESHOLD = 0.5  # lowest probability that counts as a positive label

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportedLabels:
    """Result of an import: the source, its set, and counts. `count_changed` scans were new, changed or withdrawn."""

    label_source: str
    label_set: str
    count_scans: int
    count_labels: int
    count_positive: int
    count_changed: int
    count_rejected: int
    rejected: str  # counts by reason
    is_new: bool  # False: the same file was imported before

    as_json = asdict


def import_labels(data_root: Path, path: Path, name: str, label_set: LabelSet = CT_RATE_18) -> ImportedLabels:
    """Imports a file of labels as the source `name`, which replaces an earlier import of that name.

    Only scans whose labels changed are recorded. A scan that the file lacks is withdrawn. Raises `ConfigurationError`
    for a name that is taken, or a file that is no table of labels. Raises `StageFailedError`, after the rejects are
    recorded, if no label could be taken.
    """
    check_name(name, f"--name {name!r}")
    store.query(data_root, "select 1")  # complains without a warehouse, before anything is made
    limits = replace(LIMITS, reject_share=1.0)  # a part of a data set knows a part of the names
    parameters = {"file": str(path), "name": name, "label_set": label_set.name}
    with open_run(data_root, STAGE, name, parameters=parameters, limits=limits) as run:
        _check_free(data_root, name)
        try:
            sha256 = sha256_of(path)
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be read ({error.strerror or error})") from error
        known = _read_names(data_root)
        fingerprint = compute_fingerprint(sha256, label_set.fingerprint, VERSIONS[STAGE], sorted(known.items()))
        earlier = _find_import(data_root, name, fingerprint)
        return earlier or _import(run, path, name, label_set, known, sha256, fingerprint)


def _check_free(data_root: Path, name: str) -> None:
    is_labeller = store.query(
        data_root,
        "select 1 from current_labels where labeller_id = $name and label_set is null "
        "union all select 1 from current_models where model_id = $name limit 1",
        {"name": name},
    )
    if name in TAKEN or name.startswith(TRAINED_PREFIX) or is_labeller:
        raise ConfigurationError(f"--name {name}: is taken by a labeller or by labels of the project")


def _read_names(data_root: Path) -> dict[str, str]:
    """Scan of each scan and volume that the warehouse knows."""
    scans = {scan: scan for (scan,) in store.query(data_root, "select scan_id from scans")}
    return scans | dict(store.query(data_root, "select volume_name, scan_id from current_volumes"))


def _find_import(data_root: Path, name: str, fingerprint: str) -> ImportedLabels | None:
    rows = store.query(
        data_root,
        "select label_set, count_scans, count_labels, count_rejected from current_label_sources "
        "where label_source = ? and fingerprint = ?",
        [name, fingerprint],
    )
    for label_set, count_scans, count_labels, count_rejected in rows:
        return ImportedLabels(name, label_set, count_scans, count_labels, 0, 0, count_rejected, "", is_new=False)
    return None


def _import(
    run: StageRun, path: Path, name: str, label_set: LabelSet, known: Mapping[str, str], sha256: str, fingerprint: str
) -> ImportedLabels:
    table = read_label_table(path, label_set, known)
    _record_rejects(run, name, table.errors, fingerprint)
    if not table.scans:
        raise StageFailedError(f"{path}: no label could be taken: {describe_errors(table.errors) or 'all are blank'}")
    count_changed = _record_labels(run, name, label_set, table)
    if not label_set.is_built_in:
        record_set(run, label_set)
    counts = {
        "count_scans": len(table.scans), "count_labels": int(np.isfinite(table.values).sum()),
        "count_rejected": len(table.errors),
    }  # fmt: skip
    source = {"label_source": name, "label_set": label_set.name, "fingerprint": fingerprint}
    # The last record: an import that was killed has none, and is made again.
    run.record("label_sources", [source | counts | {"file_name": path.name, "sha256": sha256}])
    run.count_done = len(table.scans)
    return ImportedLabels(
        name, label_set.name, **counts, count_positive=int((table.values >= THRESHOLD).sum()),
        count_changed=count_changed, rejected=describe_errors(table.errors), is_new=True,
    )  # fmt: skip


def _record_rejects(run: StageRun, name: str, errors: list[BadItemError], fingerprint: str) -> None:
    """Records the rejects of this file, and withdraws those of the file before."""
    now = {error.item for error in errors}
    before = store.query(
        run.data_root, "select distinct item from current_rejects where stage = ? and variant = ?", [STAGE, name]
    )
    gone = [item for (item,) in before if item not in now]
    if gone:
        key = {"stage": STAGE, "variant": name, "is_withdrawn": True}
        run.record("rejects", [key | {"item": item} for item in gone])
    if errors:
        run.reject_all([(error, fingerprint) for error in errors])


def _record_labels(run: StageRun, name: str, label_set: LabelSet, table: LabelTable) -> int:
    """Records the labels of scans whose labels changed, and withdraws scans without any. Returns their number."""
    prints = _fingerprint_rows(label_set, table)
    rows = store.query(
        run.data_root, "select distinct scan_id, fingerprint from current_labels where labeller_id = ?", [name]
    )
    before = dict(rows)
    changed = [row for row, scan in enumerate(table.scans) if before.get(scan) != prints[row]]
    withdrawn = sorted(before.keys() - {*table.scans})
    if changed:
        run.record("labels", _make_rows(name, label_set, table, changed, [prints[row] for row in changed]))
    if withdrawn:
        gone = {"labeller_id": name, "label_set": label_set.name, "fingerprint": "withdrawn", "is_withdrawn": True}
        run.record("labels", [gone | {"scan_id": scan} for scan in withdrawn])
    return len(changed) + len(withdrawn)


def _fingerprint_rows(label_set: LabelSet, table: LabelTable) -> list[str]:
    """Fingerprint of the labels of each scan. Prompts are no part of it."""
    common = compute_fingerprint(label_set.name, label_set.names, table.has_probabilities.tolist(), THRESHOLD)
    values = np.ascontiguousarray(table.values)
    return [hashlib.sha256(common.encode() + row.tobytes()).hexdigest() for row in values]


def _make_rows(name: str, label_set: LabelSet, table: LabelTable, rows: list[int], prints: list[str]) -> pa.Table:
    """Rows of `labels`, a known label each."""
    values = table.values[rows]
    row_index, finding_index = np.nonzero(np.isfinite(values))
    flat = values[row_index, finding_index]
    is_probability = table.has_probabilities[finding_index]
    count = len(flat)

    def repeat(index: Any, texts: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), pa.array(texts, pa.string()))

    return pa.table(
        {
            "scan_id": repeat(row_index, [table.scans[row] for row in rows]),
            "abnormality": repeat(finding_index, list(label_set.names)),
            "labeller_id": repeat(np.zeros(count, int), [name]), "fingerprint": repeat(row_index, prints),
            "probability": pa.array(flat, mask=~is_probability), "value": pa.array((flat >= THRESHOLD).astype(np.int8)),
            "threshold": pa.array(np.full(count, THRESHOLD), mask=~is_probability),
            "label_set": repeat(np.zeros(count, int), [label_set.name]),
        }
    )  # fmt: skip
