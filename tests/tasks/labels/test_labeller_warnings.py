"""A labeller whose training beat no baseline, or not all: named on stderr, in `models`, `status` and `labels`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.command_line import keep_loggers
from support.records import label_rows, write_run
from support.reports import write_reports

from ctclip_model.config import TfidfConfig, smoke
from ctclip_model.device import Compute, Precision
from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.job import TrainingJob
from tasks.labels.label import record_labels
from tasks.labels.labellers import find_labeller
from tasks.labels.reports import LabelledReports, LabellerTraining
from tasks.models.record import note_held_out
from tasks.run.logs import configure_logging
from tasks.run.stage_run import open_run
from tasks.training.labeller import place_reports, run_tfidf_training
from tasks.training.processes import Launch
from tasks.training.train import run_training
from tasks.upkeep.queries import list_warnings
from warehouse.store import query

COUNT = 60
TEXTS, LABELS = write_reports(COUNT, seed=0)
REPORTS = LabelledReports([f"train_{number}_a" for number in range(COUNT)], TEXTS, LABELS)
TFIDF = LabellerTraining("tfidf", TfidfConfig(min_reports=2, folds=2))
UNTAUGHT = dataclasses.replace(smoke(), labeller=dataclasses.replace(smoke().labeller, learning_rate=0.0))
POOR = LabellerTraining("smoke", UNTAUGHT.labeller)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rows = [
        {"scan_id": scan, "findings": text, "fingerprint": text}
        for scan, text in zip(REPORTS.scans, TEXTS, strict=True)
    ]
    write_run(root, 0, "ingest", reports=rows, published_labels=label_rows(REPORTS.scans, LABELS))
    return root


def train_and_label(data_root: Path, training: LabellerTraining) -> tuple[str, str]:
    """The detail of the training's run, and the labeller's identifier."""
    name = REPORTS.labeller_id(training)
    with open_run(data_root, "train-labeller", training.name) as run:
        if training is TFIDF:
            run_tfidf_training(run, training, REPORTS)
        else:
            manifest = place_reports(run.data_root, REPORTS, training)
            run_training(run, TrainingJob(ModelKind.labeller, manifest, UNTAUGHT, Compute("cpu")), Launch())
        note_held_out(run, name, "")
    texts = {scan: (text, text) for scan, text in zip(REPORTS.scans, TEXTS, strict=True)}
    with open_run(data_root, "label", name) as labelling:
        record_labels(labelling, find_labeller(data_root, name), texts, "cpu", Precision.float32)
    return run.summary()["detail"], name


def test_only_the_labeller_that_learnt_nothing_is_warned_of(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with keep_loggers():
        configure_logging()
        detail, good = train_and_label(data_root, TFIDF)
        assert detail.startswith("macro F1 on held-out reports 1.000 (always absent 0.000")
        assert "learnt" not in capsys.readouterr().err
        detail, poor = train_and_label(data_root, POOR)
        assert "tf-idf 1.000" in detail
        assert capsys.readouterr().err.count(f"ctclip: {poor} has learnt no more than") == 2
    (line,) = list_warnings(data_root)
    assert line.startswith(f"{poor} has learnt no more than")
    labelled = query(data_root, "select distinct labeller_id, labeller_warning is null from current_labels")
    assert set(labelled) == {(good, True), (poor, False)}
    recorded = query(data_root, "select model_id, held_out is null, warning is null from current_models")
    assert set(recorded) == {(good, False, True), (poor, False, False)}
