"""Trainings of labellers: a manifest for a transformer, or a tf-idf labeller at once, in seconds."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from ctclip_model.config import TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.job import Manifest
from tasks.labels.reports import LabelledReports, LabellerTraining
from tasks.models.record import ModelRow, record_model
from tasks.run.progress import show_progress
from tasks.run.stage_run import StageRun
from tasks.settings import HAND
from tasks.training.manifest import place_manifest


def place_reports(data_root: Path, reports: LabelledReports, training: LabellerTraining) -> Manifest:
    """Writes the manifest of a labeller's training, which is all that a worker needs."""
    table = pa.table({"scan_id": reports.scans, "text": reports.texts, "labels": reports.labels.tolist()})
    fingerprint = reports.fingerprint(training)
    manifest = place_manifest(data_root, table, reports.labeller_id(training), fingerprint, fingerprint)
    is_hand_labelled = reports.scans[0].startswith(f"{HAND}:")
    return replace(manifest, source="reports labelled by hand", revision="") if is_hand_labelled else manifest


def run_tfidf_training(run: StageRun, training: LabellerTraining, reports: LabelledReports) -> None:
    """Trains a tf-idf labeller, and records its reports and its model."""
    from ctclip_model.labelling.tfidf import train_tfidf_labeller

    assert isinstance(training.config, TfidfConfig)
    started = time.monotonic()
    labeller_id = reports.labeller_id(training)
    with show_progress(run.stage, len(ABNORMALITIES), "abnormalities") as progress:
        result = train_tfidf_labeller(
            reports.texts, reports.labels, training.config, run.data_root / "models" / labeller_id,
            on_abnormality=lambda: progress.advance(1),
        )  # fmt: skip
    if not run.has_recorded("model_samples", labeller_id):
        run.record("model_samples", reports.sample_rows(labeller_id))
    record_model(
        run,
        ModelRow(
            model_id=labeller_id, kind=ModelKind.labeller, fingerprint=reports.fingerprint(training),
            preset=training.name, config=asdict(training.config), count_parameters=result.count_parameters,
            count_samples=len(reports.texts), duration_s=time.monotonic() - started,
        ),
    )  # fmt: skip
