"""Labels reports: plans the pending ones and records what a labeller reads in them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from ctclip_model.config import fingerprint_each
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.reports import SECTIONS, clean_report, report_sha256
from ctclip_model.device import Precision, choose_device
from ctclip_model.errors import ReportError
from ctclip_model.models.held_out import read_held_out
from tasks.labels.labellers import LabellerReference, read_trained_on, reading_version
from tasks.run.cut_texts import note_cut
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.run.pending import plan_items
from tasks.run.progress import show_progress
from tasks.run.selection import Selection
from tasks.run.stage_run import StageRun
from warehouse import store

logger = logging.getLogger(__name__)


def read_reports(data_root: Path) -> dict[str, str]:
    """Cleaned text of every scan's report, by scan. A report without findings and impression has an empty text."""
    rows = store.query(data_root, "select scan_id, findings, impression from current_reports order by all")
    return {scan: clean_report(findings, impression, SECTIONS) for scan, findings, impression in rows}


def wanted_labels(
    texts: Mapping[str, str], labeller_id: str, dtype: Precision, trained_on: Collection[str] | None, version: int
) -> dict[str, Fingerprint]:
    """Fingerprint of every report's labels, by scan.

    `trained_on` holds the SHA-256 of the labeller's training reports: their labels have other fingerprints.
    `version` is the labeller's `reading_version`.
    """
    trained = {scan for scan, text in texts.items() if trained_on and report_sha256(text) in trained_on}
    wanted = {}
    for is_trained, also in ((False, ()), (True, ("trained on",))):
        mine = {scan: text for scan, text in texts.items() if (scan in trained) is is_trained}
        after = (*dtype.fingerprint_parts, *also)
        digests = fingerprint_each((labeller_id, version), [list(mine.values())], after)
        for (scan, text), digest in zip(mine.items(), digests, strict=True):
            parts = {"text": text, "precision": dtype.value, "training reports": is_trained, VERSION: version}
            wanted[scan] = Fingerprint(digest, parts)
    return {scan: wanted[scan] for scan in texts}


def plan_labels(
    run: StageRun, labeller_id: str, dtype: Precision, selection: Selection, *, force: bool, retry_rejects: bool
) -> dict[str, tuple[str, str]]:
    """Reports to label, as {scan: (text, fingerprint)}. Records an empty report as a reject."""
    texts = read_reports(run.data_root)
    run.detail = "" if texts else "there are no reports"
    trained_on, version = read_trained_on(run.data_root, labeller_id), reading_version(run.data_root, labeller_id)
    wanted = wanted_labels(texts, labeller_id, dtype, trained_on, version)
    pending = plan_items(run, labeller_id, wanted, selection=selection, force=force, retry_rejects=retry_rejects)
    empty = [scan for scan in pending if not texts[scan]]
    if empty:
        errors = [
            (ReportError(scan, "empty_report", "has neither findings nor an impression"), pending[scan])
            for scan in empty
        ]
        run.reject_all(errors)
    return {scan: (texts[scan], fingerprint) for scan, fingerprint in pending.items() if texts[scan]}


def record_labels(
    run: StageRun, reference: LabellerReference, reports: dict[str, tuple[str, str]], device: str, dtype: Precision
) -> None:
    """Labels the reports in batches and records each batch as soon as it is labelled."""
    from ctclip_model.evaluation.metrics import require_probabilities  # imported late: no plan needs SciPy
    from ctclip_model.labelling.labeller import load_labeller

    labeller = load_labeller(reference.folder, device=str(choose_device(device)))
    trained_on = read_trained_on(run.data_root, reference.labeller_id)
    held_out = read_held_out(reference.folder)
    warning = None if held_out is None else held_out.warning
    if warning is not None:
        logger.warning("%s %s", reference.labeller_id, warning)
    scans, count_cut = list(reports), 0
    with show_progress("label", len(scans), "reports") as progress:
        for start in range(0, len(scans), run.limits.label_batch):
            chunk = scans[start : start + run.limits.label_batch]
            texts = [reports[scan][0] for scan in chunk]
            cut: list[int] = []
            probabilities = labeller.label(texts, dtype=dtype.autocast, on_cut=cut.extend)
            require_probabilities(probabilities, reference.labeller_id)
            is_training = [None if trained_on is None else report_sha256(text) in trained_on for text in texts]
            count_cut += sum(tokens > 0 for tokens in cut)
            run.record(
                "labels",
                [
                    {
                        "scan_id": scan, "abnormality": name, "labeller_id": reference.labeller_id,
                        "fingerprint": reports[scan][1], "probability": float(value),
                        "value": int(value >= threshold), "threshold": float(threshold), "is_training": seen,
                        "labeller_warning": warning, "count_cut_tokens": tokens,
                    }
                    for scan, seen, tokens, row in zip(chunk, is_training, cut, probabilities, strict=True)
                    for name, value, threshold in zip(ABNORMALITIES, row, labeller.thresholds, strict=True)
                ],
            )  # fmt: skip
            run.count_done += len(chunk)
            progress.advance(len(chunk))
            run.publish_if_due()
    note_cut(run, count_cut)
