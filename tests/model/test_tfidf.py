"""The tf-idf labeller: learning, held-out reports, calibration and its folder."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import GroupKFold
from support.reports import COLUMNS, write_reports

from ctclip_model.config import TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import CheckpointError, ConfigurationError
from ctclip_model.labelling.labeller import load_labeller
from ctclip_model.labelling.tfidf import TfidfLabeller, choose_threshold, train_tfidf_labeller

FILES = ("config.json", "model.safetensors", "terms.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "labeller-tfidf-1"
    return folder, train_tfidf_labeller(*write_reports(200, seed=0), TfidfConfig(), folder)


@pytest.fixture
def copied(trained, tmp_path):
    """The trained labeller's folder elsewhere, for tests that damage it."""
    for name in FILES:
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    return tmp_path


def test_a_labeller_learns_negations_and_is_loaded_from_its_folder(trained):
    folder, result = trained
    labeller = load_labeller(folder)
    reports, labels = write_reports(100, seed=1)
    probabilities = labeller.label(reports)
    assert isinstance(labeller, TfidfLabeller)
    assert probabilities.dtype == np.float32
    assert ((probabilities >= labeller.thresholds) == labels).all()
    assert result.validation_agreement > 0.99
    assert labeller.labeller_id == "labeller-tfidf-1"
    assert json.loads((folder / "config.json").read_text())["info"]["reports"] == 200


def test_labels_do_not_depend_on_order_or_company(trained):
    labeller = load_labeller(trained[0])
    reports = [*write_reports(30, seed=2)[0], "", "Nothing known."]
    together = labeller.label(reports)
    assert (labeller.label(reports[::-1])[::-1] == together).all()
    assert (np.concatenate([labeller.label([report]) for report in reports]) == together).all()
    assert labeller.label([]).shape == (0, len(ABNORMALITIES))


@pytest.mark.parametrize(
    "write",
    [str.lower, str.upper, lambda text: text.replace("i", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}").upper(),
     lambda text: text.replace(" ", "\n"), lambda text: text.replace(". ", ".<br/>").replace(" ", "&nbsp;"),
     lambda text: text.replace(". ", ".")],
    ids=["lower case", "capitals", "Turkish capitals", "a word a line", "HTML", "no space after stops"],
)  # fmt: skip
def test_labels_do_not_depend_on_layout(trained, write):
    labeller = load_labeller(trained[0])
    reports, labels = write_reports(50, seed=3)
    found = labeller.label([write(report) for report in reports]) >= labeller.thresholds
    assert (found == labels).all()


def test_a_labeller_of_older_rules_keeps_its_labels_and_says_so(copied, caplog):
    path = copied / "config.json"
    description = json.loads(path.read_text())
    assert description.pop("rules") == 2
    path.write_text(json.dumps(description))
    older = load_labeller(copied)
    assert "reads reports by older rules" in caplog.text
    column = COLUMNS[0]
    lost = "Bilateral pleural effusion was\nnot observed."
    assert older.label([lost])[0, column] != older.label([lost.replace("\n", " ")])[0, column]


def test_rules_of_a_later_version_are_refused(copied):
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rules": 99}))
    with pytest.raises(CheckpointError, match="rules 99; this version has 2 at most"):
        load_labeller(copied)


def test_a_report_that_only_names_an_abnormality_shows_it(trained):
    labeller = load_labeller(trained[0])
    found = labeller.label(["Pleural effusion", "Normal.", ""]) >= labeller.thresholds
    assert found[:, COLUMNS[0]].tolist() == [True, False, False]


def test_the_same_reports_give_the_same_bytes(trained, tmp_path):
    train_tfidf_labeller(*write_reports(200, seed=0), TfidfConfig(), tmp_path / "labeller-tfidf-1")
    for name in FILES:
        assert (tmp_path / "labeller-tfidf-1" / name).read_bytes() == (trained[0] / name).read_bytes()


def test_an_abnormality_that_no_report_shows_gets_its_prevalence(trained):
    labeller = load_labeller(trained[0])
    unknown = np.delete(np.arange(len(ABNORMALITIES)), COLUMNS)
    assert labeller.label(["Emphysema."])[0, unknown] == pytest.approx(1 / 202)


def test_reports_of_one_group_are_held_out_together(tmp_path):
    reports, labels = write_reports(40, seed=0)
    labels[:] = 0
    labels[:20, COLUMNS[0]] = 1  # differs between the groups alone, so the other group teaches nothing
    result = train_tfidf_labeller(
        [f"{report} {'Old' if place < 20 else 'New'} scanner." for place, report in enumerate(reports)],
        labels, TfidfConfig(), tmp_path / "a", groups=["a"] * 20 + ["b"] * 20,
    )  # fmt: skip
    assert load_labeller(tmp_path / "a").label(["Old scanner."])[0, COLUMNS[0]] == pytest.approx(0.5)
    assert result.validation_agreement < 1


def test_noisy_labels_give_calibrated_probabilities(tmp_path):
    reports, labels = write_reports(600, seed=0)
    flipped = np.random.default_rng(0).random(600) < 0.2
    labels[flipped, COLUMNS[0]] ^= 1
    train_tfidf_labeller(reports, labels, TfidfConfig(), tmp_path / "a", groups=[str(n) for n in range(600)])
    labeller = load_labeller(tmp_path / "a")
    low, high = labeller.label(["There is no pleural effusion.", "There is pleural effusion."])[:, COLUMNS[0]]
    assert low == pytest.approx(0.2, abs=0.07)
    assert high == pytest.approx(0.8, abs=0.07)


def test_threshold_is_the_one_of_the_best_f1():
    labels, probabilities = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.3, 0.4, 0.6, 0.8])
    assert choose_threshold(labels, probabilities) == pytest.approx(0.2)
    assert choose_threshold(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.4])) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("reports", "labels", "message"),
    [
        (["A nodule."] * 9, np.zeros((9, 18), int), "two different reports"),
        (["One.", "Two."], np.zeros((2, 18), int), "no term is in 5 of 2 reports"),
        (["One.", "Two."], np.full((2, 18), 2), "0 or 1"),
        (["One.", "Two."], np.zeros((2, 17), int), "18 labels"),
    ],
)
def test_reports_that_nothing_can_be_learned_from_are_refused(tmp_path, reports, labels, message):
    with pytest.raises(ConfigurationError, match=message):
        train_tfidf_labeller(reports, labels, TfidfConfig(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(copied, name):
    (copied / name).write_bytes((copied / name).read_bytes()[:40])
    with pytest.raises(CheckpointError):
        load_labeller(copied)


def test_arrays_of_another_shape_or_nan_are_refused(copied):
    path = copied / "model.safetensors"
    arrays = load_file(path)
    save_file(arrays | {"biases": arrays["biases"][:17].copy()}, path)
    with pytest.raises(CheckpointError, match="arrays"):
        load_labeller(copied)
    save_file(arrays | {"biases": arrays["biases"] * np.nan}, path)
    with pytest.raises(CheckpointError, match="NaN or infinite: biases"):
        load_labeller(copied)
    terms = json.loads((copied / "terms.json").read_text())
    (copied / "terms.json").write_text(json.dumps(terms[1:] + terms[1:2]))
    with pytest.raises(CheckpointError, match="different terms"):
        load_labeller(copied)


@pytest.mark.slow
def test_real_reports_are_read_better_than_by_plain_tfidf(shared_data, tmp_path):
    from tasks.labels.hand_labels import read_hand_labels

    reports = read_hand_labels(shared_data / "data/text_classifier/train.csv")
    texts, labels = np.array(reports.texts), reports.labels
    plain, ours = np.zeros_like(labels), np.zeros_like(labels)
    probabilities, uncalibrated = np.zeros((2, *labels.shape))
    groups = np.unique(texts, return_inverse=True)[1]
    for training, held in GroupKFold(5, shuffle=True, random_state=0).split(texts, groups=groups):
        train_tfidf_labeller(texts[training].tolist(), labels[training], TfidfConfig(), tmp_path / "a")
        labeller = load_labeller(tmp_path / "a")
        probabilities[held] = labeller.label(texts[held])
        uncalibrated[held] = 1 / (1 + np.exp(-labeller.logits(texts[held])))
        ours[held] = probabilities[held] >= labeller.thresholds
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        seen, unseen = vectorizer.fit_transform(texts[training]), vectorizer.transform(texts[held])
        for place in range(len(ABNORMALITIES)):
            regression = LogisticRegression(class_weight="balanced", solver="liblinear")
            plain[held, place] = regression.fit(seen, labels[training, place]).predict(unseen)
    assert f1_score(labels, ours, average="macro") >= f1_score(labels, plain, average="macro") + 0.15
    assert f1_score(labels, ours, average="macro") >= 0.93
    assert log_loss(labels.ravel(), probabilities.ravel()) < log_loss(labels.ravel(), uncalibrated.ravel())
