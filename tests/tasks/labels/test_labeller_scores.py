"""Labellers against hand labels: a training report never scores its labeller, in any spelling, under any name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score
from support.records import label_rows, write_run
from support.reports import COLUMNS, write_hand_labels, write_reports

from ctclip_model.config import EvaluationConfig, TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.reports import report_sha256
from ctclip_model.device import Precision
from ctclip_model.errors import CheckFailedError, CheckpointError, ConfigurationError, MetadataError
from ctclip_model.labelling.labeller import load_labeller
from tasks.labels import score as labeller_scores
from tasks.labels.hand_labels import read_hand_labels
from tasks.labels.label import plan_labels, record_labels
from tasks.labels.labellers import LabellerReference, read_trained_on
from tasks.labels.reports import LabelledReports, LabellerTraining
from tasks.labels.score import plan_scoring, record_trained_on, score_labeller
from tasks.run.selection import Selection
from tasks.run.stage_run import open_run
from tasks.training.labeller import run_tfidf_training
from warehouse import store
from warehouse.store import query

SCANS = [f"train_{number}_a" for number in range(1, 61)]
TEXTS, LABELS = write_reports(60, seed=0)
OTHERS, OTHER_LABELS = write_reports(40, seed=1)
TRAINING = LabellerTraining("tfidf", TfidfConfig(min_reports=2, folds=2))
TRAINED_ON = LabelledReports(SCANS[:40], TEXTS[:40], LABELS[:40])
NAME = TRAINED_ON.labeller_id(TRAINING)
float32 = Precision.float32


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labeller_scores, "CONFIG", EvaluationConfig(noise_draws=20, jackknife_groups=5))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 ingested reports, and a labeller trained on the first 40 of them."""
    data_root = tmp_path_factory.mktemp("data")
    write_run(
        data_root, 0, "ingest",
        reports=[
            {"scan_id": scan, "findings": text, "fingerprint": text} for scan, text in zip(SCANS, TEXTS, strict=True)
        ],
        published_labels=label_rows(SCANS, LABELS),
    )  # fmt: skip
    with open_run(data_root, "train-labeller", "tfidf") as run:
        run_tfidf_training(run, TRAINING, TRAINED_ON)
    return data_root


@pytest.fixture
def data_root(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "data"))


@pytest.fixture
def hand(tmp_path: Path) -> Path:
    """40 unseen reports, and 20 reports that trained the labeller, in other capitals and spaces."""
    texts = [*OTHERS, *(f" {text.upper()}  " for text in TEXTS[:20])]
    labels = np.concatenate([OTHER_LABELS, LABELS[:20]])
    rows = [[f"train_{n}", text, *row] for n, (text, row) in enumerate(zip(texts, labels.tolist(), strict=True), 1)]
    return write_hand_labels(tmp_path / "hand.csv", rows)


def reference(data_root: Path, name: str = NAME) -> LabellerReference:
    folder = data_root / "models" / name
    return LabellerReference(name, folder if folder.exists() else data_root / "models" / NAME)


def score(data_root: Path, hand: Path, name: str = NAME, **options: Any) -> bool:
    """Scores the labeller. Returns False if there was nothing to score."""
    with open_run(data_root, "evaluate", name) as run:
        scoring = plan_scoring(run, name, hand, float32, force=False, **options)
        if scoring is not None:
            score_labeller(run, reference(data_root, name), scoring, "cpu", float32)
    return scoring is not None


def label(data_root: Path, name: str = NAME) -> int:
    """Labels what is pending and returns the number of reports."""
    with open_run(data_root, "label", name) as run:
        pending = plan_labels(run, name, float32, Selection(), force=False, retry_rejects=False)
        record_labels(run, reference(data_root, name), pending, "cpu", float32)
    return len(pending)


def test_reports_that_trained_a_labeller_do_not_score_it(data_root, hand):
    assert score(data_root, hand)
    labeller = load_labeller(data_root / "models" / NAME)
    decided = labeller.label(OTHERS) >= labeller.thresholds
    for column in COLUMNS:
        row = query(
            data_root,
            "select f1, n_positive, n, f1_ci_low <= f1 and f1 <= f1_ci_high from labeller_scores "
            f"where labeller_id = '{NAME}' and abnormality = '{ABNORMALITIES[column]}'",
        )
        f1 = f1_score(OTHER_LABELS[:, column], decided[:, column], zero_division=0)
        assert row == [(pytest.approx(f1), int(OTHER_LABELS[:, column].sum()), 40, True)]
    items = query(data_root, "select distinct item from current_predictions")
    assert {item for (item,) in items} == {f"hand:train_{n}" for n in range(1, 41)}
    assert query(data_root, "select * from model_leaderboard where not is_published") == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5])
def test_labeller_whose_probabilities_are_no_numbers_is_refused_before_it_records(data_root, hand, monkeypatch, value):
    labeller = type(load_labeller(data_root / "models" / NAME))
    monkeypatch.setattr(labeller, "label", lambda _, texts, **options: np.full((len(texts), 18), value))
    with pytest.raises(CheckpointError, match=f"{NAME}: its probabilities of 60 of 60 items are not numbers"):
        label(data_root)
    with pytest.raises(CheckpointError, match="40 of 40"):
        score(data_root, hand)
    assert query(data_root, "select count(*) from labels") == [(0,)]
    assert query(data_root, "select count(*) from predictions") == [(0,)]


def test_labeller_is_scored_again_only_when_a_report_or_a_label_changes(data_root, hand):
    assert score(data_root, hand)
    assert not score(data_root, hand)
    before = query(data_root, "select count(*) from hand_labels")
    hand.write_text(hand.read_text().replace("train_1,", "train_1000,", 1))
    assert score(data_root, hand)
    assert not score(data_root, hand)
    assert query(data_root, "select count(*) from hand_labels") == [(before[0][0] + 18,)]  # 18 labels of one report
    assert query(data_root, "select count(*) from pending_evaluate") == [(0,)]


def test_labeller_of_unknown_training_is_not_scored_until_that_is_told(data_root, hand, tmp_path):
    with pytest.raises(ConfigurationError, match="--trained-on"):
        score(data_root, hand, "radbert-1")
    seen = write_hand_labels(tmp_path / "seen.csv", [["x", OTHERS[0].replace(" ", "  "), *[0] * 18]])
    with open_run(data_root, "label", "radbert-1") as run:
        record_trained_on(run, "radbert-1", seen)
        record_trained_on(run, "radbert-1", seen)
    assert query(data_root, "select count(*) from model_samples where model_id = 'radbert-1'") == [(1,)]
    assert score(data_root, hand, "radbert-1")
    assert query(data_root, "select n from labeller_scores where abnormality = 'Emphysema'") == [(59,)]
    assert query(data_root, "select * from patient_overlap") == []


def test_file_of_nothing_but_training_reports_scores_nothing(data_root, tmp_path):
    seen = write_hand_labels(tmp_path / "seen.csv", [["x", TEXTS[0], *[0] * 18]])
    with pytest.raises(ConfigurationError, match="every report of the file trained"):
        score(data_root, seen)


def test_agreement_with_published_and_hand_labels_is_of_what_the_labeller_was_not_trained_on(data_root, hand):
    assert (label(data_root), label(data_root)) == (60, 0)
    assert query(data_root, "select is_training, count(distinct scan_id) from labels group by 1 order by 1") == [
        (False, 20), (True, 40),
    ]  # fmt: skip
    labeller = load_labeller(data_root / "models" / NAME)
    values = (labeller.label(TEXTS[40:]) >= labeller.thresholds).astype(int)[:, COLUMNS[0]]
    truth, name = LABELS[40:, COLUMNS[0]], ABNORMALITIES[COLUMNS[0]]
    found = query(data_root, f"select n, kappa from label_agreement where abnormality = '{name}'")
    assert found == [(20, pytest.approx(cohen_kappa_score(truth, values)))]
    disagreements = query(
        data_root,
        f"select scan_id from label_disagreements where abnormality = '{name}' and not is_training order by all",
    )
    assert disagreements == sorted(
        (scan,) for scan, ours, theirs in zip(SCANS[40:], values, truth, strict=True) if ours != theirs
    )
    score(data_root, hand)
    agreement = query(
        data_root, "select distinct labeller_id, n, kappa, agreement from hand_agreement where n_positive > 0"
    )
    assert agreement == [("published", 20, 1.0, 1.0)]  # the file's copies of ingested reports: all trained the labeller


def test_report_learned_of_later_to_be_training_is_labelled_as_such(data_root, tmp_path):
    assert label(data_root, "radbert-1") == 60
    assert query(data_root, "select distinct is_training from labels") == [(None,)]
    seen = write_hand_labels(tmp_path / "seen.csv", [["x", TEXTS[50], *[0] * 18]])
    with open_run(data_root, "label", "radbert-1") as run:
        record_trained_on(run, "radbert-1", seen)
    assert label(data_root, "radbert-1") == 1
    rows = query(data_root, "select distinct scan_id from current_labels where is_training")
    assert rows == [(SCANS[50],)]


def test_copies_of_a_report_are_known_by_letters_and_digits():
    assert report_sha256(' A nodule,\n of 5 "mm". ') == report_sha256("a NODULE of 5mm")
    assert report_sha256("a nodule of 5 mm") != report_sha256("a nodule of 6 mm")


def test_report_named_twice_is_refused(tmp_path):
    with pytest.raises(MetadataError, match="x is there twice"):
        read_hand_labels(write_hand_labels(tmp_path / "a.csv", [["x", "A.", *[0] * 18], ["x", "B.", *[0] * 18]]))


def test_hand_report_under_a_name_of_ct_rate_stops_the_publish(tmp_path):
    write_run(tmp_path, 0, "evaluate", hand_labels=[{"report_id": "train_1", "abnormality": "Emphysema"}])
    with pytest.raises(CheckFailedError, match="hand_report_ids"):
        store.publish(tmp_path)


@pytest.mark.slow
def test_labeller_trained_on_half_of_the_real_hand_labels_reads_the_other_half(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(labeller_scores, "CONFIG", EvaluationConfig())
    path = shared_data / "data/text_classifier/train.csv"
    reports = read_hand_labels(path)
    half = reports.draw(400, seed=0)
    with open_run(tmp_path, "train-labeller", "tfidf") as run:
        run_tfidf_training(run, training := LabellerTraining("tfidf", TfidfConfig()), half)
    labeller_id = half.labeller_id(training)
    assert score(tmp_path, path, labeller_id)
    trained_on = read_trained_on(tmp_path, labeller_id)
    (row,) = query(tmp_path, "select f1, f1_ci_low, f1_ci_high, n from labeller_scores where abnormality = 'macro'")
    assert row[3] == sum(report_sha256(text) not in trained_on for text in reports.texts) < 400
    assert row[0] > 0.8
    assert row[1] < row[0] < row[2]
    assert query(tmp_path, "select count(*) from current_hand_labels") == [(800 * 18,)]
