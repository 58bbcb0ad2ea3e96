"""Labellers trained here: of which kind, on which reports, and what is recorded of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ctclip_model.config import Preset, TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.device import Compute
from ctclip_model.models.kinds import ModelKind
from tasks.run.progress import show_progress
from tasks.run.records import sha256_of
from tasks.run.stage_run import StageRun, code_version
from tasks.settings import HAND, LABELLER_KINDS
from tasks.training.ct_clip import make_job
from tasks.training.manifest import Manifest, place_manifest
from tasks.training.processes import Launch, train
from tasks.training.records import is_recorded, train_and_record

if TYPE_CHECKING:
    from ctclip_model.labelling.tfidf import TfidfResult
    from ctclip_model.training.labeller import LabellerResult
from tasks.labels.reports import LabelledReports, LabellerTraining, choose_training


def place_reports(data_root: Path, reports: LabelledReports, training: LabellerTraining) -> Manifest:
    """Writes the manifest of a labeller's training: all that a worker needs to train it."""
    table = pa.table({"scan_id": reports.scans, "text": reports.texts, "labels": reports.labels.tolist()})
    fingerprint = reports.fingerprint(training)
    manifest = place_manifest(data_root, table, reports.labeller_id(training), fingerprint, fingerprint)
    are_of_a_file = reports.scans[0].startswith(f"{HAND}:")
    return replace(manifest, source="reports labelled by hand", revision="") if are_of_a_file else manifest


def run_roberta_training(run: StageRun, preset: Preset, manifest: Manifest, compute: Compute, launch: Launch) -> None:
    """Trains a labeller of the preset's shape, and records it as a model, what it learned from, and its steps."""
    from ctclip_model.training.engine.state import discard_state
    from ctclip_model.training.labeller import LabellerResult, read_manifest

    if is_recorded(run, manifest.model_id):
        return
    started = time.monotonic()
    reports = LabelledReports(*read_manifest(manifest.path))
    job = make_job(ModelKind.labeller, run.data_root, manifest, preset, compute)
    train_it = partial(train, job, run.data_root, launch)
    total = round(preset.labeller.epochs * len(reports.texts) * (1 - preset.labeller.validation_share))
    result = train_and_record(run, manifest, total, train_it)
    assert isinstance(result, LabellerResult)
    _record(
        run, choose_training(LABELLER_KINDS[0], preset), reports, result, started,
        config=asdict(preset.labeller) | {"compute": asdict(compute)},
        source=manifest.source, revision=manifest.revision,
    )  # fmt: skip
    discard_state(result.folder)


def run_tfidf_training(run: StageRun, training: LabellerTraining, reports: LabelledReports) -> None:
    """Trains a tf-idf labeller and records it as a model, and what it learned from."""
    from ctclip_model.labelling.tfidf import train_tfidf_labeller

    assert isinstance(training.config, TfidfConfig)
    started = time.monotonic()
    folder = run.data_root / "models" / reports.labeller_id(training)
    with show_progress(run.stage, len(ABNORMALITIES), "abnormalities") as progress:
        result = train_tfidf_labeller(
            reports.texts, reports.labels, training.config, folder, on_abnormality=lambda: progress.advance(1)
        )
    _record(run, training, reports, result, started, config=asdict(training.config))


def _record(
    run: StageRun,
    training: LabellerTraining,
    reports: LabelledReports,
    result: LabellerResult | TfidfResult,
    started: float,
    *,
    config: Mapping[str, Any],
    source: str | None = None,
    revision: str | None = None,
) -> None:
    labeller_id = reports.labeller_id(training)
    folder = run.data_root / "models" / labeller_id
    if not run.has_recorded("model_samples", labeller_id):
        run.record("model_samples", reports.sample_rows(labeller_id))  # first: with a row of `models` all is done
    run.record(
        "models",
        [
            {
                "model_id": labeller_id, "kind": ModelKind.labeller, "fingerprint": reports.fingerprint(training),
                "preset": training.name, "config": json.dumps(config, sort_keys=True),
                "path": str(folder.relative_to(run.data_root)), "count_samples": len(reports.texts),
                "source": source, "revision": revision,
                "code_version": code_version(), "count_parameters": result.count_parameters,
                "weights_sha256": sha256_of(folder / "model.safetensors"),
                "duration_s": time.monotonic() - started, "created_at": datetime.now(UTC),
            }
        ],
    )  # fmt: skip
    run.count_done += 1
